// SPDX-License-Identifier: Apache-2.0
// Affine map of every token: y = x W^T + b. W lies as PyTorch's does, (outputs, inputs).
#pragma once

#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

// x (T, inputs), weight (outputs, inputs), bias (outputs) or empty for none, y (T, outputs).
PKM_OP(linear_forward, Matrix<const float> x, Matrix<const float> weight, Vector<const float> bias, Matrix<float> y)

// dx = dy W, dweight += dy^T x, dbias += column sums of dy. An empty view {} means that this gradient is not wanted.
// dx must not overlap x or dy.
PKM_OP(linear_backward, Matrix<const float> x, Matrix<const float> weight, Matrix<const float> dy, Matrix<float> dx,
       Matrix<float> dweight, Vector<float> dbias)

}  // namespace pkmesh
