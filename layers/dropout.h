// SPDX-License-Identifier: Apache-2.0
// Inverted dropout (Srivastava et al., JMLR 2014): an element survives with probability 1 - p, scaled by 1 / (1 - p).
// No mask is stored: element i of a view is dropped as the random number `first_index + i` says, so the backward pass
// draws the same mask again, and the mask depends neither on the thread count nor on the rank count.
#pragma once

#include "runtime/dispatch.h"
#include "runtime/random.h"
#include "runtime/view.h"

namespace pkmesh {

// Names a mask. One Random per (seed, layer and place, step); first_index is the global index of the view's first
// element: (global index of its first token) * width. The default drops nothing.
struct Dropout {
  Random random{0, ""};
  float probability = 0.0F;  // in [0, 1)
  int64_t first_index = 0;

  // Element i is dropped if random.bits(first_index + i) < threshold().
  uint32_t threshold() const { return static_cast<uint32_t>(static_cast<double>(probability) * 0x1p32); }
  float scale() const { return 1.0F / (1.0F - probability); }
};

// y = dropout(x); all views (T, width). y may be x. It is its own backward pass: dropout(stream, dy, mask, dx).
PKM_OP(dropout, Matrix<const float> x, const Dropout& mask, Matrix<float> y)

namespace PKM_CPU {
// For kernels that apply a mask themselves: factors[j] = 0 or 1 / (1 - p) for elements first + j of the mask.
void dropout_factors(const Dropout& mask, int64_t first, int64_t count, float* factors);
}  // namespace PKM_CPU

}  // namespace pkmesh
