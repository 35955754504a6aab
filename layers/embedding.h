// SPDX-License-Identifier: Apache-2.0
// Token and learned position embeddings: y[t] = E[token[t]] + P[position[t]].
#pragma once

#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

// positions[t] = t % length: of the tokens of whole sequences, one after the other.
PKM_KERNEL(count_positions, int64_t length, Vector<int32_t> positions)

// tokens, positions (T), token_table (V, d), position_table (context, d), y (T, d).
// A token or position outside its table is an InternalError: whoever read the tokens has checked them.
PKM_OP(embedding_forward, Vector<const int32_t> tokens, Vector<const int32_t> positions,
       Matrix<const float> token_table, Matrix<const float> position_table, Matrix<float> y)

// dtoken_table[tokens[t]] += dy[t], dposition_table[positions[t]] += dy[t], in the order of t for every element:
// the result does not depend on the thread count.
PKM_OP(embedding_backward, Vector<const int32_t> tokens, Vector<const int32_t> positions, Matrix<const float> dy,
       Matrix<float> dtoken_table, Matrix<float> dposition_table)

}  // namespace pkmesh
