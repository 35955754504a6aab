// SPDX-License-Identifier: Apache-2.0
// Multi-head causal self-attention (Vaswani et al., arXiv 1706.03762, section 3.2) from packed projections.
// No (context, context) matrix is kept: blocks of scores live in per-thread scratch and an online softmax joins them;
// the backward pass computes them again from the saved log-sum-exp (Dao et al., FlashAttention, arXiv 2205.14135).
// One thread does one (sequence, head), so that with two of them or more results do not depend on the thread count.
#pragma once

#include "layers/dropout.h"
#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

// What a GPU's kernels take, generation's too.
constexpr int64_t kMostGpuHeadWidth = 256;
constexpr int64_t kMostGpuContext = 65535 * 16;  // tiles of 16, as many as a grid is long

// UserError if a block of the GPU has too little shared memory for heads so wide: for the forward pass or, if it
// `trains`, for either.
void check_attention_fits(Device gpu, int64_t head_width, bool trains);

// T = sequences * context tokens, whole sequences one after the other.
struct AttentionShape {
  int64_t sequences = 0;
  int64_t context = 0;
  int64_t heads = 0;
  int64_t tokens() const { return sequences * context; }
};

// qkv (T, 3 d): queries, keys, values side by side, each (heads, d / heads) within a row. output (T, d).
// logsumexp (heads, T): log of the softmax's denominator per query. Scores are scaled by 1 / sqrt(d / heads).
// `mask` drops attention weights after the softmax; its element index is
// ((sequence * heads + head) * context + query) * context + key, so first_index is
// (global index of this rank's first sequence) * heads * context^2.
PKM_OP(attention_forward, const AttentionShape& shape, Matrix<const float> qkv, const Dropout& mask,
       Matrix<float> output, Matrix<float> logsumexp)

// dqkv (T, 3 d), written. Needs what the forward pass read and wrote, and the same mask.
PKM_OP(attention_backward, const AttentionShape& shape, Matrix<const float> qkv, Matrix<const float> output,
       Matrix<const float> logsumexp, Matrix<const float> doutput, const Dropout& mask, Matrix<float> dqkv)

}  // namespace pkmesh
