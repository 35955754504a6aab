// SPDX-License-Identifier: Apache-2.0
// Attention for generation: one new token per sequence against the keys and values of the tokens before it.
// A cache is (sequences, capacity, d), one for keys and one for values; the entry of position p lies at [sequence][p].
#pragma once

#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

// qkv (sequences, 3 d) of the new tokens; positions (sequences), each < capacity: the new token's place in its
// sequence. Writes its key and value to the caches, then output (sequences, d) = attention over positions [0,
// positions[s]].
PKM_OP(attention_decode, int64_t heads, Matrix<const float> qkv, Vector<const int32_t> positions,
       View<float, 3> key_cache, View<float, 3> value_cache, Matrix<float> output)

}  // namespace pkmesh
