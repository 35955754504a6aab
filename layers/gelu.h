// SPDX-License-Identifier: Apache-2.0
// Gaussian error linear unit, the exact one: y = x Phi(x) with Phi the normal distribution function (Hendrycks and
// Gimpel, arXiv 1606.08415, section 2); PyTorch's default, not the tanh approximation.
#pragma once

#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

// All views have one shape, (T, width). y may be x; dx may be dy.
PKM_OP(gelu_forward, Matrix<const float> x, Matrix<float> y)

// dx = dy (Phi(x) + x phi(x)), from the forward pass's input.
PKM_OP(gelu_backward, Matrix<const float> x, Matrix<const float> dy, Matrix<float> dx)

}  // namespace pkmesh
