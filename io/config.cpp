// SPDX-License-Identifier: Apache-2.0
#include "io/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <map>
#include <system_error>

#include "io/config_check.h"
#include "io/config_parse.h"
#include "io/config_schema.h"
#include "io/embedded.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

namespace pb = google::protobuf;

constexpr std::string_view kPresetSuffix = ".textproto";

std::string read_config_file(const std::string& path) {
  constexpr size_t kLargest = 1 << 20;
  std::ifstream file(path, std::ios::binary);
  if (!file)
    config::fail(
        fmt::format("{}: cannot be opened: {}; pass a file or a preset", path, std::generic_category().message(errno)));
  std::string text(kLargest + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad() || (file.gcount() == 0 && !file.eof()))
    config::fail(fmt::format("{}: cannot be read; is it a folder?", path));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kLargest) config::fail(fmt::format("{}: larger than 1 MiB, not a configuration", path));
  using namespace std::string_view_literals;
  if (text.starts_with("\xFF\xFE\0\0"sv) || text.starts_with("\0\0\xFE\xFF"sv))
    config::fail(fmt::format("{}: is in UTF-32; save it as UTF-8", path));
  if (text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF"))
    config::fail(fmt::format("{}: is in UTF-16; save it as UTF-8", path));
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);  // the mark that some editors put before UTF-8
  return text;
}

// The second line of a preset, "# What it is for", after the licence.
std::string_view summary_of(std::string_view text) {
  const size_t begin = text.find("\n# ");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin + 3, text.find('\n', begin + 1) - begin - 3);
}

const Preset& find_preset(const std::vector<Preset>& presets, const std::string& name) {
  std::vector<std::string> names;
  for (const Preset& preset : presets) {
    if (preset.name == name) return preset;
    names.emplace_back(preset.name);
  }
  const std::string near = config::nearest(name, names);
  std::error_code error;
  const bool file = std::filesystem::exists(name, error);
  config::fail(fmt::format("--config {}: no such preset; {}presets are {}; a file's name has a '/' or a '.'", name,
                           file           ? fmt::format("for the file, give ./{}; ", name)
                           : near.empty() ? ""
                                          : fmt::format("did you mean {}? ", near),
                           fmt::join(names, ", ")));
}

// Makes every field present, those without a value with their default.
void fill_defaults(pb::Message* message) {
  const pb::Reflection& r = *message->GetReflection();
  for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
    const config::Field* field = message->GetDescriptor()->field(i);
    if (field->is_repeated()) {
      for (int j = 0; config::is_message(*field) && j < r.FieldSize(*message, field); ++j)
        fill_defaults(r.MutableRepeatedMessage(message, field, j));
      continue;
    }
    switch (field->cpp_type()) {
      case config::Field::CPPTYPE_MESSAGE:
        fill_defaults(r.MutableMessage(message, field));
        break;
      case config::Field::CPPTYPE_INT32:
        r.SetInt32(message, field, r.GetInt32(*message, field));
        break;
      case config::Field::CPPTYPE_INT64:
        r.SetInt64(message, field, r.GetInt64(*message, field));
        break;
      case config::Field::CPPTYPE_UINT64:
        r.SetUInt64(message, field, r.GetUInt64(*message, field));
        break;
      case config::Field::CPPTYPE_DOUBLE:
        r.SetDouble(message, field, r.GetDouble(*message, field));
        break;
      case config::Field::CPPTYPE_BOOL:
        r.SetBool(message, field, r.GetBool(*message, field));
        break;
      case config::Field::CPPTYPE_ENUM:
        r.SetEnum(message, field, r.GetEnum(*message, field));
        break;
      case config::Field::CPPTYPE_STRING:
        r.SetString(message, field, r.GetString(*message, field));
        break;
      default:
        PKM_CHECK(false, "no option has the type of {}", field->full_name());
    }
  }
}

// Every option's value, as text format writes it.
std::map<std::string, std::string> option_values(const config::Config& config) {
  std::map<std::string, std::string> values;
  config::visit_options(config, "",
                        [&](const std::string& key, const pb::Message& message, const config::Field& field) {
                          if (!field.is_repeated()) {
                            values[key] = config::value_text(message, field, -1);
                            return;
                          }
                          std::vector<std::string> elements;
                          for (int i = 0; i < message.GetReflection()->FieldSize(message, &field); ++i)
                            elements.push_back(config::value_text(message, field, i));
                          values[key] = fmt::format("[{}]", fmt::join(elements, ", "));
                        });
  return values;
}

// One entry per layer, each with a table of its own unless it names one.
void split_memories(config::Model* model) {
  std::vector<config::Memory> memories;
  for (const config::Memory& memory : model->memory()) {
    for (const int layer : memory.layers()) {
      config::Memory one = memory;
      one.clear_layers();
      one.add_layers(layer);
      if (one.value_width() == 0) one.set_value_width(model->width());
      one.set_table(config::table_name(memory, layer));
      memories.push_back(std::move(one));
    }
  }
  std::sort(memories.begin(), memories.end(), [](const config::Memory& a, const config::Memory& b) {
    return std::pair(a.layers(0), a.placement()) < std::pair(b.layers(0), b.placement());
  });
  model->clear_memory();
  for (config::Memory& memory : memories) *model->add_memory() = std::move(memory);
}

}  // namespace

config::Config load_config(const std::string& name, std::span<const std::string> overrides) {
  if (name.find_first_of("/.") != std::string::npos) return parse_config(read_config_file(name), name, overrides);
  const std::vector<Preset> presets = list_presets();
  const Preset& preset = find_preset(presets, name);
  return parse_config(preset.text, fmt::format("{}{}", preset.name, kPresetSuffix), overrides);
}

config::Config parse_config(std::string_view text, const std::string& file, std::span<const std::string> overrides) {
  config::Parsed parsed = config::parse(text, file, overrides);
  // A run's configuration names the folder of its validation tokens, which is the training tokens' unless the user said
  // otherwise: it follows them when they move.
  const auto sets = [&](std::string_view option) {
    return std::ranges::any_of(overrides, [&](const std::string& set) { return set.starts_with(option); });
  };
  if (sets("data.train=") && !sets("data.valid=")) {
    const config::Data former = config::parse(text, file, {}).config.data();
    if (former.valid() == former.train()) parsed.config.mutable_data()->clear_valid();
  }
  config::check(parsed.config, parsed.origins);
  return resolve(std::move(parsed.config));
}

config::Config resolve(config::Config config) {
  config::Model& model = *config.mutable_model();
  if (model.ffn_width() == 0) model.set_ffn_width(4 * model.width());
  if (!model.has_embedding_norm()) model.set_embedding_norm(model.norm() == config::Model::POST_LN);
  split_memories(&model);
  if (config.data().valid().empty()) config.mutable_data()->set_valid(config.data().train());
  fill_defaults(&config);
  return config;
}

std::string to_text(const config::Config& config) {
  pb::TextFormat::Printer printer;
  printer.SetUseShortRepeatedPrimitives(true);
  printer.SetUseUtf8StringEscaping(true);
  std::string text;
  PKM_CHECK(printer.PrintToString(config, &text), "a configuration does not print");
  return text;
}

std::vector<std::string> config_changes(const config::Config& from, const config::Config& to) {
  const auto before = option_values(from);
  const auto after = option_values(to);
  std::vector<std::string> changes;
  for (const auto& [key, value] : after) {
    const auto found = before.find(key);
    if (found == before.end() || found->second != value)
      changes.push_back(fmt::format("{}: {} -> {}", key, found == before.end() ? "none" : found->second, value));
  }
  for (const auto& [key, value] : before)
    if (!after.contains(key)) changes.push_back(fmt::format("{}: {} -> none", key, value));
  return changes;
}

std::vector<Preset> list_presets() {
  std::vector<Preset> presets;
  for (const EmbeddedFile& file : embedded_files()) {
    if (!file.name.ends_with(kPresetSuffix)) continue;
    const std::string_view name = file.name.substr(0, file.name.size() - kPresetSuffix.size());
    presets.push_back({name, summary_of(file.bytes), file.bytes});
  }
  std::sort(presets.begin(), presets.end(), [](const Preset& a, const Preset& b) { return a.name < b.name; });
  return presets;
}

}  // namespace pkmesh
