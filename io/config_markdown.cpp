// SPDX-License-Identifier: Apache-2.0
// The schema for people: a page of documentation, and the help of one option.
#include <fmt/format.h>

#include <cctype>

#include "io/config.h"
#include "io/config_parse.h"
#include "io/config_schema.h"

namespace pkmesh {
namespace {

using config::Field;
using config::Type;

constexpr std::string_view kIntroduction = R"(# Configuration

Generated from [`io/config.proto`](../io/config.proto) by `pkmesh config --markdown`; a test fails when it is stale.

A configuration is a file in protobuf's text format, or the name of a preset. What it leaves out has its default:

```
# run.textproto
model {
  layers: 6
  width: 512
  heads: 8
  memory { layers: 4 sub_keys: 256 key_width: 256 }
}
train { steps: 20000 batch: 32 }
```

`--set KEY=VALUE` overrides an option, any number of times: `--set train.steps=100`, `--set data.train=tokens`.
Entries of a list of groups have numbers, from 0: `--set model.memory.0.layers=[2,4]`; the number after the last one adds
an entry, and `--set model.memory=[]` empties the list. Everything is checked before anything is allocated: names, types,
ranges, and whether options agree. `--print-config` prints the configuration that results, with every option in it.

## Presets

| `--config` | what it is |
|---|---|
)";

std::string accepts(const Field& field) {
  const std::string limits = config::limits_text(field);
  return limits.empty() ? config::type_text(field) : fmt::format("{}, {}", config::type_text(field), limits);
}

std::string table_row(const Field& field) {
  std::string meaning = config::comment(field.full_name());
  if (field.cpp_type() == Field::CPPTYPE_ENUM) {
    for (int i = 0; i < field.enum_type()->value_count(); ++i) {
      const auto& value = *field.enum_type()->value(i);
      const std::string what = config::comment(value.full_name());
      meaning += fmt::format("<br>`{}`{}{}", value.name(), what.empty() ? "" : ": ", what);
    }
  }
  const bool derived = field.options().HasExtension(config::derived);
  const std::string value = config::default_text(field);
  return fmt::format("| `{}` | {} | {} | {} |\n", field.name(),
                     derived || field.is_repeated() ? value : "`" + value + "`", accepts(field), meaning);
}

void append_group(const Type& type, const std::string& key, const std::string& about, std::string* page) {
  *page += fmt::format("\n## {}\n\n{}\n\n| option | default | accepts | meaning |\n|---|---|---|---|\n", key, about);
  for (int i = 0; i < type.field_count(); ++i) {
    if (!config::is_message(*type.field(i))) *page += table_row(*type.field(i));
  }
  for (int i = 0; i < type.field_count(); ++i) {
    const Field& field = *type.field(i);
    if (!config::is_message(field)) continue;
    const std::string nested = config::join_key(key, field.name());
    append_group(*field.message_type(), field.is_repeated() ? nested + ".N" : nested,
                 config::comment(field.full_name()), page);
  }
}

// One option per line: "train.steps  100000  Updates of the parameters."
void append_lines(const Type& type, const std::string& key, std::string* help) {
  for (int i = 0; i < type.field_count(); ++i) {
    const Field& field = *type.field(i);
    const std::string name = config::join_key(key, field.name());
    if (config::is_message(field)) {
      append_lines(*field.message_type(), field.is_repeated() ? name + ".N" : name, help);
    } else {
      *help += fmt::format("{:<34} {:<14} {}\n", name, config::default_text(field), config::comment(field.full_name()));
    }
  }
}

std::string field_help(const Field& field, std::string_view key) {
  std::string help = fmt::format("{} ({}; default: {})\n{}\n", key, accepts(field), config::default_text(field),
                                 config::comment(field.full_name()));
  if (field.cpp_type() != Field::CPPTYPE_ENUM) return help;
  for (int i = 0; i < field.enum_type()->value_count(); ++i) {
    const auto& value = *field.enum_type()->value(i);
    help += fmt::format("  {:<14} {}\n", value.name(), config::comment(value.full_name()));
  }
  return help;
}

bool is_index(std::string_view part) {
  if (part == "N") return true;
  for (const char c : part) {
    if (std::isdigit(static_cast<unsigned char>(c)) == 0) return false;
  }
  return !part.empty();
}

}  // namespace

std::string option_help(std::string_view key) {
  const Type* type = config::Config::descriptor();
  std::string prefix;
  std::string about;
  std::string_view rest = key;
  bool list = false;
  while (!rest.empty()) {
    const size_t dot = rest.find('.');
    const std::string part(rest.substr(0, dot));
    rest = dot == std::string_view::npos ? "" : rest.substr(dot + 1);
    if (list && is_index(part)) {
      prefix = config::join_key(prefix, part);
      list = false;
      continue;
    }
    const Field* field = type->FindFieldByName(part);
    if (field == nullptr) config::fail(config::no_such_option(prefix, *type, part));
    prefix = config::join_key(prefix, part);
    if (!config::is_message(*field)) {
      if (!rest.empty()) config::fail(fmt::format("{} is a single option; drop \".{}\"", prefix, rest));
      return field_help(*field, prefix);
    }
    about = config::comment(field->full_name()) + "\n";
    list = field->is_repeated();
    type = field->message_type();
  }
  append_lines(*type, list ? prefix + ".N" : prefix, &about);
  return about;
}

std::string configuration_markdown() {
  std::string page(kIntroduction);
  for (const Preset& preset : list_presets()) page += fmt::format("| `{}` | {} |\n", preset.name, preset.summary);
  const Type& root = *config::Config::descriptor();
  for (int i = 0; i < root.field_count(); ++i) {
    const Field& field = *root.field(i);
    append_group(*field.message_type(), field.name(), config::comment(field.full_name()), &page);
  }
  return page;
}

}  // namespace pkmesh
