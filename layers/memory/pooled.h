// SPDX-License-Identifier: Apache-2.0
// What the exchange computes (docs/memory-layer.md, "Over R ranks"). A pair is what one token reads from one
// owner: selections [pair_offsets[p], pair_offsets[p + 1]). The owner answers it with one vector and never with rows.
//
//   rows       (local rows, dv), float, bf16 or fp16
//   selections (M), pair_offsets (P + 1)
//   partials, gradients (P, dv)
#pragma once

#include <variant>

#include "comm/route.h"
#include "runtime/bf16.h"
#include "runtime/dispatch.h"
#include "runtime/fp16.h"
#include "runtime/view.h"

namespace pkmesh {

// The rows of a table that live on this rank.
using TableRows = std::variant<Matrix<float>, Matrix<bf16>, Matrix<fp16>>;
int64_t width_of(const TableRows& rows);

// Owner: partials[p] = sum over the pair's selections of weight * row, in their order; on the CPU by block of rows
// first where what is read together reads rows often (layers/memory/gather_in_blocks.h).
PKM_OP(pooled_gather, TableRows rows, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
       Matrix<float> partials)

// Owner: dweights[i] = gradients[pair of i] . row of i.
PKM_OP(weight_gradients, TableRows rows, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
       Matrix<const float> gradients, Vector<float> dweights)

// Asker: out[t] (T, dv) = sum of token t's partials, token_pairs[token_offsets[t] ...), by owner.
PKM_OP(combine_partials, Matrix<const float> partials, Vector<const int32_t> token_offsets,
       Vector<const int32_t> token_pairs, Matrix<float> out)

// Asker: to[p] = from[which[p]].
PKM_OP(copy_rows, Matrix<const float> from, Vector<const int32_t> which, Matrix<float> to)

// Asker: to[order[i]] = from[i]; order is a permutation.
PKM_OP(scatter_scalars, Vector<const float> from, Vector<const int32_t> order, Vector<float> to)

}  // namespace pkmesh
