// SPDX-License-Identifier: Apache-2.0
// Drawing the next token from logits: temperature, then the nucleus (Holtzman et al. 2020, "The Curious Case of Neural
// Text Degeneration", section 3.1).
#pragma once

#include <cstdint>
#include <span>

namespace pkmesh {

// The token that `uniform` in [0, 1) draws. temperature 0: the likeliest token (the lowest id among equals). top_p in
// (0, 1]: only the smallest set of likeliest tokens that holds this share takes part; 1 is all of them.
int32_t draw_token(std::span<const float> logits, double temperature, double top_p, double uniform);

}  // namespace pkmesh
