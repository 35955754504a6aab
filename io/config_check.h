// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "io/config_parse.h"

namespace pkmesh::config {

// What the memory of a block calls its table: the block's name unless it is given another.
std::string table_name(const Memory& memory, int layer);

// Throws UserError at the first value that is out of its limits or contradicts another, saying where it was set.
void check(const Config& config, const Origins& origins);

}  // namespace pkmesh::config
