// SPDX-License-Identifier: Apache-2.0
// The output layer, tied to the token embeddings, fused with its loss: loss[t] = -log softmax(x[t] E^T)[target[t]].
// Tokens are processed in chunks, so that the (T, V) logits never exist: only (chunk, V) of them, in the caller's
// scratch. The training variant turns a chunk's logits into their gradients in place.
// Losses do not depend on the thread count beyond gemm's own rounding.
#pragma once

#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

// Tokens whose logits exist at one time: enough for efficient matrix products, little beside the activations. Each
// chunk reads and rewrites dembedding, which a GPU's products do not hide at 512 tokens.
constexpr int64_t logits_chunk(DeviceKind device) {
  return device == DeviceKind::kCpu ? 1024 : 4096;
}

// x (T, d), embedding (V, d), targets (T) in [0, V), losses (T) in nats.
// scratch (chunk, V): any chunk >= 1; logits_chunk() makes the matrix products efficient.
PKM_OP(cross_entropy_forward, Matrix<const float> x, Matrix<const float> embedding, Vector<const int32_t> targets,
       Matrix<float> scratch, Vector<float> losses)

// Also the gradients of gradient_scale * sum of losses: dx (T, d) written, dembedding (V, d) += .
// gradient_scale is 1 / (tokens of all ranks). dx must not be x.
PKM_OP(cross_entropy_train, Matrix<const float> x, Matrix<const float> embedding, Vector<const int32_t> targets,
       float gradient_scale, Matrix<float> scratch, Vector<float> losses, Matrix<float> dx, Matrix<float> dembedding)

}  // namespace pkmesh
