// SPDX-License-Identifier: Apache-2.0
// What the schema says about itself. A key is a dotted path through it, with the index of each repeated message:
// "model.memory.0.heads". Everything here is read from io/config.proto; no option is named a second time.
#pragma once

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pkmesh::config {

using Field = google::protobuf::FieldDescriptor;
using Type = google::protobuf::Descriptor;

bool is_message(const Field& field);
std::string join_key(std::string_view prefix, std::string_view name);

// The comment above a message, a field, an enum or an enum's value, as one line. Empty if there is none.
std::string comment(std::string_view full_name);

// "1 to 1024", "at least 1", "more than 0, a multiple of 2"; empty without limits.
std::string limits_text(const Field& field);
// Empty if `value` is within the field's limits, else "must be ...". NaN is never within.
std::string limits_error(const Field& field, double value);
// The choices of an enum field: "POST_LN, PRE_LN".
std::string choices_text(const Field& field);
std::string type_text(const Field& field);     // "whole number", "list of whole numbers"
std::string default_text(const Field& field);  // as text format writes it, or how it is derived

// The candidate nearest to `word` in edit distance, upper or lower case; empty if none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

// "model.heds: no such option; did you mean model.heads?" for a name that the message at `prefix` has not.
std::string no_such_option(std::string_view prefix, const Type& type, std::string_view name);
// "model.norm is PRELN, not one of POST_LN, PRE_LN; did you mean PRE_LN?"
std::string no_such_choice(std::string_view key, const Field& field, std::string_view value);

// Calls visit(key, message, field) for every field of `message` that is not itself a message, depth first, present or
// not.
template <class Visit>
void visit_options(const google::protobuf::Message& message, const std::string& prefix, const Visit& visit) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const Field& field = *message.GetDescriptor()->field(i);
    const std::string key = join_key(prefix, field.name());
    if (!is_message(field)) {
      visit(key, message, field);
    } else if (field.is_repeated()) {
      for (int j = 0; j < reflection.FieldSize(message, &field); ++j)
        visit_options(reflection.GetRepeatedMessage(message, &field, j), join_key(key, std::to_string(j)), visit);
    } else {
      visit_options(reflection.GetMessage(message, &field), key, visit);
    }
  }
}

// Value `index` of a field (-1 of one that is not repeated), as text format writes it.
std::string value_text(const google::protobuf::Message& message, const Field& field, int index);

}  // namespace pkmesh::config
