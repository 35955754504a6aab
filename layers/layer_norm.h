// SPDX-License-Identifier: Apache-2.0
// Layer normalisation over the width (Ba et al., arXiv 1607.06450): y = (x - mean) rstd gamma + beta, with
// rstd = 1 / sqrt(variance + epsilon) and the biased variance.
// Every sum has one fixed order: results do not depend on the thread count.
#pragma once

#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

// x, y (T, d); gamma, beta (d); mean, rstd (T) are kept for the backward pass. y may be x if no backward pass follows.
PKM_OP(layer_norm_forward, Matrix<const float> x, Vector<const float> gamma, Vector<const float> beta, float epsilon,
       Matrix<float> y, Vector<float> mean, Vector<float> rstd)

// sum = a + b, y = layer_norm(sum) in one pass over memory. sum may be a or b; y may be neither of them nor sum.
// The backward pass is layer_norm_backward with x = sum.
PKM_OP(residual_layer_norm_forward, Matrix<const float> a, Matrix<const float> b, Vector<const float> gamma,
       Vector<const float> beta, float epsilon, Matrix<float> sum, Matrix<float> y, Vector<float> mean,
       Vector<float> rstd)

// dx = (gradient of the normalisation) + dskip; dgamma, dbeta += . dskip (T, d) is the gradient that reaches x by
// another way (the residual stream), or empty {} for none. dx may be dy or dskip.
PKM_OP(layer_norm_backward, Matrix<const float> x, Vector<const float> gamma, Vector<const float> mean,
       Vector<const float> rstd, Matrix<const float> dy, Matrix<const float> dskip, Matrix<float> dx,
       Vector<float> dgamma, Vector<float> dbeta)

}  // namespace pkmesh
