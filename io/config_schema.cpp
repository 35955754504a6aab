// SPDX-License-Identifier: Apache-2.0
#include "io/config_schema.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <numeric>

#include "io/config.pb.h"
#include "io/embedded.h"
#include "runtime/check.h"

namespace pkmesh::config {
namespace {

using Comments = std::map<std::string, std::string, std::less<>>;

std::string one_line(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const bool space = std::isspace(static_cast<unsigned char>(c)) != 0;
    if (!space) line += c;
    if (space && !line.empty() && line.back() != ' ') line += ' ';
  }
  if (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

// The name of what a source location's path leads to. A path alternates field numbers of descriptor.proto with indices:
// message_type=4, enum_type=5 in a file; field=2, nested_type=3, enum_type=4 in a message; value=2 in an enum.
std::string name_at(const google::protobuf::FileDescriptorProto& file, std::span<const int> path) {
  if (path.size() < 2 || path.size() % 2 != 0) return {};
  const google::protobuf::DescriptorProto* message = nullptr;
  const google::protobuf::EnumDescriptorProto* choices = nullptr;
  std::string scope = file.package();
  for (size_t i = 0; i < path.size(); i += 2) {
    const bool last = i + 2 == path.size();
    const int part = path[i];
    const int index = path[i + 1];
    if (choices != nullptr) return last && part == 2 ? scope + "." + choices->value(index).name() : "";
    if (message == nullptr && part != 4 && part != 5) return {};
    if (message != nullptr && part == 2) return last ? scope + "." + message->field(index).name() : "";
    if (message != nullptr && part != 3 && part != 4) return {};
    if (message == nullptr ? part == 5 : part == 4) {
      choices = message == nullptr ? &file.enum_type(index) : &message->enum_type(index);
      if (last) return scope + "." + choices->name();  // values stand beside their enum, not inside
    } else {
      message = message == nullptr ? &file.message_type(index) : &message->nested_type(index);
      scope += "." + message->name();
    }
  }
  return scope;
}

Comments read_comments() {
  google::protobuf::FileDescriptorSet set;
  for (const EmbeddedFile& file : embedded_files()) {
    if (file.name == "config.schema")
      PKM_CHECK(set.ParseFromArray(file.bytes.data(), static_cast<int>(file.bytes.size())), "schema does not parse");
  }
  PKM_CHECK(set.file_size() == 1, "the program carries {} schemas", set.file_size());
  Comments comments;
  for (const auto& location : set.file(0).source_code_info().location()) {
    const std::string name = name_at(set.file(0), {location.path().data(), static_cast<size_t>(location.path_size())});
    if (!name.empty() && !location.leading_comments().empty()) comments[name] = one_line(location.leading_comments());
  }
  return comments;
}

// Changed, added, dropped and swapped letters between a and b, upper or lower case.
int64_t edit_distance(std::string_view a, std::string_view b) {
  const auto same = [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) == std::tolower(static_cast<unsigned char>(y));
  };
  // Distances between the first i letters of a and the first j of b, for the current i and the two before it.
  std::vector<int64_t> before_last(b.size() + 1);
  std::vector<int64_t> last(b.size() + 1);
  std::vector<int64_t> current(b.size() + 1);
  std::iota(current.begin(), current.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    before_last.swap(last);
    last.swap(current);
    current[0] = static_cast<int64_t>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      current[j] = std::min({last[j - 1] + (same(a[i - 1], b[j - 1]) ? 0 : 1), last[j] + 1, current[j - 1] + 1});
      if (i > 1 && j > 1 && same(a[i - 1], b[j - 2]) && same(a[i - 2], b[j - 1]))
        current[j] = std::min(current[j], before_last[j - 2] + 1);
    }
  }
  return current.back();
}

std::vector<std::string> field_names(const Type& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.field_count(); ++i) names.push_back(type.field(i)->name());
  return names;
}

std::vector<std::string> choice_names(const Field& field) {
  std::vector<std::string> names;
  for (int i = 0; i < field.enum_type()->value_count(); ++i) names.push_back(field.enum_type()->value(i)->name());
  return names;
}

// The keys, without indices, of all options called `name`.
void find_by_name(const Type& type, const std::string& prefix, std::string_view name, std::vector<std::string>* keys) {
  for (int i = 0; i < type.field_count(); ++i) {
    const Field& field = *type.field(i);
    const std::string key = join_key(prefix, field.name());
    if (field.name() == name) keys->push_back(key);
    if (is_message(field)) find_by_name(*field.message_type(), key, name, keys);
  }
}

const char* number_text(Field::CppType type) {
  switch (type) {
    case Field::CPPTYPE_DOUBLE:
      return "number";
    case Field::CPPTYPE_BOOL:
      return "true or false";
    case Field::CPPTYPE_STRING:
      return "text";
    case Field::CPPTYPE_ENUM:
      return "choice";
    case Field::CPPTYPE_MESSAGE:
      return "group";
    default:
      return "whole number";
  }
}

}  // namespace

bool is_message(const Field& field) {
  return field.cpp_type() == Field::CPPTYPE_MESSAGE;
}

std::string join_key(std::string_view prefix, std::string_view name) {
  return prefix.empty() ? std::string(name) : fmt::format("{}.{}", prefix, name);
}

std::string comment(std::string_view full_name) {
  static const Comments comments = read_comments();
  const auto found = comments.find(full_name);
  return found == comments.end() ? "" : found->second;
}

std::string limits_text(const Field& field) {
  const Limits& bounds = field.options().GetExtension(config::limits);
  std::vector<std::string> parts;
  if (bounds.has_min() && bounds.has_max()) {
    parts.push_back(fmt::format("{} to {}", bounds.min(), bounds.max()));
  } else {
    if (bounds.has_min()) parts.push_back(fmt::format("at least {}", bounds.min()));
    if (bounds.has_above()) parts.push_back(fmt::format("more than {}", bounds.above()));
    if (bounds.has_max()) parts.push_back(fmt::format("at most {}", bounds.max()));
  }
  if (bounds.has_below()) parts.push_back(fmt::format("less than {}", bounds.below()));
  if (bounds.has_multiple_of()) parts.push_back(fmt::format("a multiple of {}", bounds.multiple_of()));
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string limits_error(const Field& field, double value) {
  const Limits& bounds = field.options().GetExtension(config::limits);
  const bool within = !std::isnan(value) && (!bounds.has_min() || value >= bounds.min()) &&
                      (!bounds.has_max() || value <= bounds.max()) && (!bounds.has_above() || value > bounds.above()) &&
                      (!bounds.has_below() || value < bounds.below()) &&
                      (!bounds.has_multiple_of() || std::fmod(value, static_cast<double>(bounds.multiple_of())) == 0);
  if (!within) return "must be " + limits_text(field);
  // The program computes in 32 bits, where 0.99999999 is 1 and 1e-50 is 0.
  const bool rounds_onto_bound =
      (bounds.has_above() && static_cast<double>(static_cast<float>(value)) <= bounds.above()) ||
      (bounds.has_below() && static_cast<double>(static_cast<float>(value)) >= bounds.below());
  if (rounds_onto_bound) return fmt::format("must be {} when it is rounded to 32 bits", limits_text(field));
  return value != 0 && static_cast<float>(value) == 0 ? "is too small: rounded to 32 bits it would be 0" : "";
}

std::string choices_text(const Field& field) {
  return fmt::format("{}", fmt::join(choice_names(field), ", "));
}

std::string type_text(const Field& field) {
  const std::string one = number_text(field.cpp_type());
  return field.is_repeated() ? fmt::format("list of {}s", one) : one;
}

std::string default_text(const Field& field) {
  if (field.options().HasExtension(derived)) return field.options().GetExtension(derived);
  if (field.is_repeated()) return "none";
  const google::protobuf::Message* prototype =
      google::protobuf::MessageFactory::generated_factory()->GetPrototype(field.containing_type());
  return value_text(*prototype, field, -1);
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  int64_t best_distance = 1 + std::max<int64_t>(1, static_cast<int64_t>(word.size()) / 3);
  for (const std::string& candidate : candidates) {
    const int64_t distance = edit_distance(word, candidate);
    if (distance >= best_distance || distance >= static_cast<int64_t>(candidate.size())) continue;
    best = candidate;
    best_distance = distance;
  }
  return best;
}

std::string no_such_option(std::string_view prefix, const Type& type, std::string_view name) {
  const std::string key = join_key(prefix, name);
  if (const std::string sibling = nearest(name, field_names(type)); !sibling.empty())
    return fmt::format("{}: no such option; did you mean {}?", key, join_key(prefix, sibling));
  std::vector<std::string> elsewhere;
  find_by_name(*Config::descriptor(), "", name, &elsewhere);
  if (!elsewhere.empty()) return fmt::format("{}: no such option; did you mean {}?", key, fmt::join(elsewhere, " or "));
  return fmt::format("{}: no such option; {} has {}", key, prefix.empty() ? "a configuration" : prefix,
                     fmt::join(field_names(type), ", "));
}

std::string no_such_choice(std::string_view key, const Field& field, std::string_view value) {
  const std::string near = nearest(value, choice_names(field));
  return fmt::format("{} is {}, not one of {}{}", key, value, choices_text(field),
                     near.empty() ? "" : fmt::format("; did you mean {}?", near));
}

std::string value_text(const google::protobuf::Message& message, const Field& field, int index) {
  std::string text;
  google::protobuf::TextFormat::PrintFieldValueToString(message, &field, index, &text);
  return text;
}

}  // namespace pkmesh::config
