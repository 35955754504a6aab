// SPDX-License-Identifier: Apache-2.0
// Product-key selection (Lample et al. 2019, sections 3.1 and 3.2): which k of n*n slots each head reads, and how much.
//
// Per head, the first half of the query is scored against n sub-keys and the second half against n others; slot
// i * n + j scores the sum of sub-key i's score and sub-key j's. The k best slots are among the pairs of the k best of
// each half, and, both halves being sorted, among those pairs (a, b) with (a + 1)(b + 1) <= k: every other pair is
// matched or beaten by k before it. Their scores go through a softmax per head.
//
// Ties: the lower sub-key first within a half; the lower slot first among the pairs. NaN counts as the largest score:
// it reaches the weights, and so the loss and the step's finite gate, rather than being passed over in silence.
//
//   queries (T, H, c)           per head: first half, second half; c even
//   keys    (H, 2, n, c/2)      k <= n, n <= 46340, so that a slot fits in an int32
//   slots   (T, H*k)            per head by score, descending
//   weights (T, H*k)            softmax over each head's k
#pragma once

#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

constexpr int64_t kMaxSubKeys = 46340;
// Of a GPU's kernels:
constexpr int64_t kMostGpuNeighbours = 512;            // the largest k
constexpr int64_t kGpuScoreBytes = int64_t{32} << 20;  // of scores at a time in the forward pass; of a token at least
constexpr int64_t kGpuBytesPerGradient = 32;           // scratch of the backward pass for each SubKeyGradient

// A sub-key that a token selected in one half of one head, with the gradient of its score. Several of the k slots may
// share a sub-key; their gradients are summed. A token's list ends before the first index < 0, or after k entries.
struct SubKeyGradient {
  int32_t index;
  float gradient;
};

PKM_OP(select_forward, View<const float, 3> queries, View<const float, 4> keys, Matrix<int32_t> slots,
       Matrix<float> weights)

// dqueries (=) and dkeys (+=) through the selected scores; the selection itself is not differentiated.
// scratch: room for (T, H, 2, k), in which each device has its own order.
PKM_OP(select_backward, View<const float, 3> queries, View<const float, 4> keys, Matrix<const int32_t> slots,
       Matrix<const float> weights, Matrix<const float> dweights, View<SubKeyGradient, 4> scratch,
       View<float, 3> dqueries, View<float, 4> dkeys)

}  // namespace pkmesh
