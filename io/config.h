// SPDX-License-Identifier: Apache-2.0
// A run is described by one message (io/config.proto). What load_config returns is complete and right: every field is
// present, derived ones included; every range and every relation between options has been checked; each entry of
// model.memory has exactly one layer and names its table, in the order of (layer, placement).
// Every error is a UserError of one line: place, key, what is wrong, how to mend it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/config.pb.h"

namespace pkmesh {

// `name` is a preset ("debug") or, with a '/' or '.' in it, a file in protobuf's text format. Overrides are assignments
// to dotted keys, applied in order: "train.steps=100", "model.memory.0.layers=[4,5]", "model.memory=[]".
// model.memory.N one past the last adds an entry.
config::Config load_config(const std::string& name, std::span<const std::string> overrides = {});
// The same from text; `file` stands in error messages.
config::Config parse_config(std::string_view text, const std::string& file,
                            std::span<const std::string> overrides = {});

// Fills in every absent field. Needs values that parse_config() would accept; resolving twice changes nothing.
config::Config resolve(config::Config config);

// In text format; parse_config gives the same config back.
std::string to_text(const config::Config& config);

// What `to` says otherwise than `from`, key by key: "train.batch: 12 -> 6". Both resolved.
std::vector<std::string> config_changes(const config::Config& from, const config::Config& to);

struct Preset {
  std::string_view name;     // "paper-12x1024"
  std::string_view summary;  // one line
  std::string_view text;     // the file
};
std::vector<Preset> list_presets();  // sorted by name

// Help of an option or a group of options, from the schema's comments: type, default, range, meaning, choices.
// Accepts keys with or without indices ("model.memory.0.heads"); "" stands for the whole schema.
std::string option_help(std::string_view key);
// The page docs/configuration.md.
std::string configuration_markdown();

}  // namespace pkmesh
