// SPDX-License-Identifier: Apache-2.0
// Text and overrides -> a message, and where each of its values was said, so that whoever finds a value wrong can point
// at it. Nothing is checked here but that keys exist and values have their type.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>

#include "io/config.pb.h"

namespace pkmesh::config {

class Origins {
 public:
  // "run.textproto:12" or "--set train.steps=0". Forgets where parts of `key` came from.
  void set(const std::string& key, std::string place);
  // "run.textproto:12: " for the key, or for the closest message around it; empty for what nobody said.
  std::string prefix(std::string_view key) const;

 private:
  std::map<std::string, std::string, std::less<>> places_;
};

struct Parsed {
  Config config;
  Origins origins;
};

// Throws UserError.
Parsed parse(std::string_view text, const std::string& file, std::span<const std::string> overrides);

// Throws UserError with control characters replaced and an end in sight, whatever bytes the message quotes.
[[noreturn]] void fail(const std::string& message);

}  // namespace pkmesh::config
