// SPDX-License-Identifier: Apache-2.0
#include "io/config_parse.h"

#include <fmt/format.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/text_format.h>

#include <cctype>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <optional>

#include "io/config_schema.h"
#include "runtime/check.h"

namespace pkmesh::config {
namespace {

namespace pb = google::protobuf;

// Keeps the first error; having a collector is also what keeps protobuf from writing to standard error itself.
class FirstError : public pb::io::ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& message) override {
    if (message_) return;
    line_ = line;
    column_ = column;
    message_ = message;
  }
  const std::optional<std::string>& message() const { return message_; }
  int line() const { return line_; }
  int column() const { return column_; }

 private:
  std::optional<std::string> message_;
  int line_ = 0;
  int column_ = 0;
};

// Where in the configuration a place in its text is.
struct Position {
  std::string prefix;            // key of the message around it
  const Type* type = nullptr;    // of that message; null inside an unknown one
  const Field* field = nullptr;  // the last field named before the place, if it exists
  int previous_line = 0;         // line of the last token before the place
  std::string word = {};         // the token at the place, a number with its sign
};

// Reads words as TextFormat does.
void be_like_text_format(pb::io::Tokenizer& tokenizer) {
  tokenizer.set_comment_style(pb::io::Tokenizer::SH_COMMENT_STYLE);
  tokenizer.set_allow_f_after_float(true);
  tokenizer.set_require_space_after_number(false);
  tokenizer.set_allow_multiline_strings(true);
}

// Follows braces and names, as protobuf reports a line and a column but neither the message nor the field.
Position find_position(std::string_view text, int line, int column, const std::string& prefix, const Type* type) {
  pb::io::ArrayInputStream stream(text.data(), static_cast<int>(text.size()));
  FirstError ignored;
  pb::io::Tokenizer tokenizer(&stream, &ignored);
  be_like_text_format(tokenizer);
  std::vector<Position> open = {{prefix, type}};
  std::map<std::string, int> entries;  // of repeated messages, so far
  std::string name;
  int previous_line = 0;
  std::string word;
  while (tokenizer.Next()) {
    const pb::io::Tokenizer::Token& token = tokenizer.current();
    if (token.line > line || (token.line == line && token.column >= column)) {
      word = token.text;
      if (word == "-" && tokenizer.Next()) word += tokenizer.current().text;
      break;
    }
    previous_line = token.line;
    const bool opens = token.text == "{" || token.text == "<";
    if (token.type == pb::io::Tokenizer::TYPE_IDENTIFIER) name = token.text;
    if ((opens || token.text == ":") && open.back().type != nullptr && !name.empty())
      open.back().field = open.back().type->FindFieldByName(name);
    if (opens) {
      const Field* field = open.back().field;
      std::string key = join_key(open.back().prefix, field != nullptr ? field->name() : name);
      if (field != nullptr && field->is_repeated()) key += fmt::format(".{}", entries[key]++);
      open.push_back({key, field != nullptr ? field->message_type() : nullptr});
      name.clear();
    } else if ((token.text == "}" || token.text == ">") && open.size() > 1) {
      open.pop_back();
      name.clear();
    } else if (token.text == ":") {
      name.clear();
    }
  }
  open.back().previous_line = previous_line;
  open.back().word = word;
  return open.back();
}

std::string range(const Field& field) {
  const std::string text = limits_text(field);
  return text.empty() ? fmt::format("0 to {}", std::numeric_limits<uint64_t>::max()) : text;
}

// The part of protobuf's message that stands in its n-th pair of quotes.
std::string quoted(const std::string& message, int n) {
  size_t end = std::string::npos;
  size_t begin = std::string::npos;
  for (int i = 0; i <= n; ++i) {
    begin = message.find('"', end == std::string::npos ? 0 : end + 1);
    if (begin == std::string::npos) return {};
    end = message.find('"', begin + 1);
    if (end == std::string::npos) return {};
  }
  return message.substr(begin + 1, end - begin - 1);
}

// Protobuf's message in our words.
std::string explain(const std::string& message, const Position& position) {
  const Field* field = position.field;
  const std::string& word = position.word;
  if (message.find("has no field named") != std::string::npos && position.type != nullptr)
    return no_such_option(position.prefix, *position.type, quoted(message, 1));
  if (message.starts_with("Expected identifier") && position.prefix.empty())
    return fmt::format("expected the name of an option, got {}; is it a configuration?", word);
  if (field == nullptr) return position.prefix.empty() ? message : fmt::format("{}: {}", position.prefix, message);
  const std::string key = join_key(position.prefix, field->name());
  if (message.starts_with("Unknown enumeration value") && field->cpp_type() == Field::CPPTYPE_ENUM)
    return no_such_choice(key, *field, quoted(message, 0));
  if (message.find("specified multiple times") != std::string::npos) return fmt::format("{} is set twice", key);
  const bool out_of_range = message.starts_with("Integer out of range");
  if (out_of_range && field->cpp_type() != Field::CPPTYPE_BOOL)
    return fmt::format("{} is out of range ({})", key, range(*field));
  if (field->cpp_type() == Field::CPPTYPE_UINT64 && word.size() > 1 && word.starts_with('-'))
    return fmt::format("{} is {}; it must be {}", key, word, range(*field));
  if (message.starts_with("Expected string")) return fmt::format("{} is text: put it in double quotes", key);
  const size_t got = message.find("got: ");
  const std::string value = got != std::string::npos ? message.substr(got + 5)
                            : out_of_range           ? word
                                                     : quoted(message, 1);
  if (field->cpp_type() == Field::CPPTYPE_ENUM && !value.empty()) return no_such_choice(key, *field, value);
  if (!is_message(*field) && !value.empty())
    return fmt::format("{} is {}; expected {}{}", key, value, field->cpp_type() == Field::CPPTYPE_BOOL ? "" : "a ",
                       type_text(*field));
  return fmt::format("{}: {}", key, message);
}

// What is wrong with a text that describes (part of) the message `type` at `prefix`; `line` counts from 1.
std::string explain(const FirstError& error, std::string_view text, const std::string& prefix, const Type* type,
                    int* line) {
  PKM_CHECK(error.message().has_value(), "protobuf refused a configuration without a reason");
  const std::string& message = *error.message();
  const Position position = find_position(text, error.line(), error.column(), prefix, type);
  // These are reported at the token that follows the culprit.
  const bool late = message.starts_with("Unknown enumeration value") ||
                    message.find("has no field") != std::string::npos ||
                    message.find("specified multiple times") != std::string::npos;
  *line = 1 + (late ? position.previous_line : error.line());
  return explain(message, position);
}

// What is wrong with the first number of a text that would be read as another one: a whole number that begins with a
// zero, which text format reads in base 8, or one so small that it would be 0. Empty if there is none.
std::string find_misread_number(std::string_view text, const std::string& prefix, const Type* type, int* line) {
  pb::io::ArrayInputStream stream(text.data(), static_cast<int>(text.size()));
  FirstError ignored;
  pb::io::Tokenizer tokenizer(&stream, &ignored);
  be_like_text_format(tokenizer);
  while (tokenizer.Next()) {
    const pb::io::Tokenizer::Token& token = tokenizer.current();
    const std::string& number = token.text;
    const bool octal = token.type == pb::io::Tokenizer::TYPE_INTEGER && number.size() > 1 && number[0] == '0' &&
                       std::isdigit(static_cast<unsigned char>(number[1])) != 0;  // not 0x40
    const bool vanishes = token.type == pb::io::Tokenizer::TYPE_FLOAT && std::strtod(number.c_str(), nullptr) == 0 &&
                          std::string_view(number).substr(0, number.find_first_of("eE")).find_first_of("123456789") !=
                              std::string_view::npos;
    if (!octal && !vanishes) continue;
    *line = 1 + token.line;
    const Position position = find_position(text, token.line, token.column, prefix, type);
    const std::string key = join_key(position.prefix, position.field != nullptr ? position.field->name() : "a number");
    return fmt::format("{} is {}, which {}", key, number,
                       octal ? "would be read in base 8; drop the zeros before it" : "is too small: it would be 0");
  }
  return {};
}

// Notes the line of every value and message that the text names.
void note_lines(const pb::Message& message, const pb::TextFormat::ParseInfoTree& tree, const std::string& prefix,
                const std::string& file, Origins* origins) {
  std::vector<const Field*> present;
  message.GetReflection()->ListFields(message, &present);
  for (const Field* field : present) {
    const std::string key = join_key(prefix, field->name());
    const int count = field->is_repeated() ? message.GetReflection()->FieldSize(message, field) : 1;
    if (!is_message(*field)) {
      origins->set(key, fmt::format("{}:{}", file, tree.GetLocation(field, field->is_repeated() ? 0 : -1).line + 1));
      continue;
    }
    for (int i = 0; i < count; ++i) {
      const int index = field->is_repeated() ? i : -1;
      const std::string part = field->is_repeated() ? join_key(key, std::to_string(i)) : key;
      origins->set(part, fmt::format("{}:{}", file, tree.GetLocation(field, index).line + 1));
      const pb::Message& nested = field->is_repeated() ? message.GetReflection()->GetRepeatedMessage(message, field, i)
                                                       : message.GetReflection()->GetMessage(message, field);
      if (const auto* nested_tree = tree.GetTreeForNested(field, index); nested_tree != nullptr)
        note_lines(nested, *nested_tree, part, file, origins);
    }
  }
}

std::vector<std::string> split(std::string_view key) {
  std::vector<std::string> parts = {""};
  for (const char c : key) {
    if (c == '.') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

// An override on its way to the field it names.
class Override {
 public:
  explicit Override(const std::string& assignment) : place_("--set " + assignment) {
    const size_t equals = assignment.find('=');
    if (equals == std::string::npos || equals == 0) fail(place_ + ": expected KEY=VALUE, such as train.steps=100");
    key_ = assignment.substr(0, equals);
    value_ = assignment.substr(equals + 1);
  }

  void apply(Config* config, Origins* origins) {
    const std::vector<std::string> parts = split(key_);
    pb::Message* message = config;
    std::string prefix;
    for (size_t i = 0; i < parts.size(); ++i) {
      const Field* field = message->GetDescriptor()->FindFieldByName(parts[i]);
      if (field == nullptr) reject(no_such_option(prefix, *message->GetDescriptor(), parts[i]));
      const std::string key = join_key(prefix, field->name());
      const bool last = i + 1 == parts.size();
      if (!is_message(*field) && !last) reject(fmt::format("{} is a single option; drop \".{}\"", key, parts[i + 1]));
      if (last && (!is_message(*field) || field->is_repeated())) {
        assign(message, *field, prefix);
        origins->set(key, place_);
        return;
      }
      prefix = key;
      if (field->is_repeated()) {
        message = entry(message, *field, key, parts[++i]);
        prefix = join_key(key, parts[i]);
      } else {
        message = message->GetReflection()->MutableMessage(message, field);
      }
    }
    reject(fmt::format("{} is a group of options; name one, such as {}.{}", prefix, prefix,
                       message->GetDescriptor()->field(0)->name()));
  }

 private:
  [[noreturn]] void reject(const std::string& why) const { fail(place_ + ": " + why); }

  // Entry `index` of a repeated message, a new one if it is one past the last.
  pb::Message* entry(pb::Message* message, const Field& field, const std::string& prefix, const std::string& index) {
    const pb::Reflection& reflection = *message->GetReflection();
    const int size = reflection.FieldSize(*message, &field);
    int wanted = -1;
    const auto [end, error] = std::from_chars(index.data(), index.data() + index.size(), wanted);
    if (error != std::errc() || end != index.data() + index.size() || wanted < 0)
      reject(fmt::format("{} is a list; say which entry, such as {}", prefix,
                         join_key(prefix + ".0", field.message_type()->FindFieldByName(index) != nullptr
                                                     ? index
                                                     : field.message_type()->field(0)->name())));
    if (wanted > size) reject(fmt::format("{} has no entry {}; the next one is {}.{}", prefix, wanted, prefix, size));
    return wanted == size ? reflection.AddMessage(message, &field)
                          : reflection.MutableRepeatedMessage(message, &field, wanted);
  }

  // Replaces the field by what the value says, in text format; text needs no quotes.
  void assign(pb::Message* message, const Field& field, const std::string& prefix) {
    const pb::Reflection& reflection = *message->GetReflection();
    if (field.cpp_type() == Field::CPPTYPE_STRING && !value_.starts_with('"'))
      return reflection.SetString(message, &field, value_);
    const std::unique_ptr<pb::Message> scratch(message->New());
    pb::TextFormat::Parser parser;
    FirstError error;
    parser.RecordErrorsTo(&error);
    if (value_.empty()) reject(fmt::format("{} needs a value", key_));
    const std::string text = fmt::format("{}: {}", field.name(), value_);
    int line = 0;
    if (!parser.ParseFromString(text, scratch.get()))
      reject(explain(error, text, prefix, message->GetDescriptor(), &line));
    if (const std::string misread = find_misread_number(text, prefix, message->GetDescriptor(), &line);
        !misread.empty())
      reject(misread);
    std::vector<const Field*> named;
    scratch->GetReflection()->ListFields(*scratch, &named);
    if (named.size() > 1 || (named.size() == 1 && named[0] != &field))
      reject("sets more than one option; repeat --set for each");
    if (named.empty() && !field.is_repeated()) reject(fmt::format("{} needs a value", key_));
    reflection.ClearField(message, &field);
    message->MergeFrom(*scratch);
  }

  std::string place_;
  std::string key_;
  std::string value_;
};

}  // namespace

void Origins::set(const std::string& key, std::string place) {
  const std::string parts = key + ".";
  places_.erase(places_.lower_bound(parts), places_.lower_bound(key + "/"));  // '/' follows '.'
  places_[key] = std::move(place);
}

std::string Origins::prefix(std::string_view key) const {
  while (true) {
    if (const auto found = places_.find(key); found != places_.end()) return found->second + ": ";
    const size_t dot = key.rfind('.');
    if (dot == std::string_view::npos) return {};
    key = key.substr(0, dot);
  }
}

void fail(const std::string& message) {
  constexpr size_t kLongest = 500;
  std::string line;
  for (const char c : message.substr(0, kLongest)) line += std::iscntrl(static_cast<unsigned char>(c)) != 0 ? '?' : c;
  throw UserError(message.size() > kLongest ? line + "..." : line);
}

Parsed parse(std::string_view text, const std::string& file, std::span<const std::string> overrides) {
  Parsed parsed;
  pb::TextFormat::ParseInfoTree tree;
  pb::TextFormat::Parser parser;
  FirstError error;
  parser.RecordErrorsTo(&error);
  parser.WriteLocationsTo(&tree);
  pb::io::ArrayInputStream stream(text.data(), static_cast<int>(text.size()));
  int line = 0;
  if (!parser.Parse(&stream, &parsed.config)) {
    const std::string what = explain(error, text, "", Config::descriptor(), &line);
    fail(fmt::format("{}:{}: {}", file, line, what));
  }
  if (const std::string misread = find_misread_number(text, "", Config::descriptor(), &line); !misread.empty())
    fail(fmt::format("{}:{}: {}", file, line, misread));
  note_lines(parsed.config, tree, "", file, &parsed.origins);
  for (const std::string& assignment : overrides) Override(assignment).apply(&parsed.config, &parsed.origins);
  return parsed;
}

}  // namespace pkmesh::config
