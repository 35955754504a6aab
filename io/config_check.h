// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "io/config_parse.h"

namespace pkmesh::config {

// Throws UserError at the first value that is out of its limits or contradicts another, saying where it was set.
void check(const Config& config, const Origins& origins);

}  // namespace pkmesh::config
