// SPDX-License-Identifier: Apache-2.0
// Batch normalisation (Ioffe and Szegedy, arXiv 1502.03167, algorithms 1 and 2) of F features over the tokens of ALL
// ranks: y = (x - mean) / sqrt(variance + epsilon) * weight + bias, with the biased variance of the batch; the running
// variance is the unbiased one, as in PyTorch.
//
// Sums over tokens are in double, in an order that depends on T alone, and sums over ranks are the same bits on every
// rank. So results do not depend on the thread count, running statistics never drift apart, and splitting the batch
// over ranks moves a result by a rounding of the sums.
#pragma once

#include <string>

#include "layers/context.h"
#include "layers/parameters.h"
#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

// sums (2 F + 1) = per feature the sum of x over this rank's tokens and the sum of its squares, then the tokens'
// number.
PKM_OP(batch_norm_sums, Matrix<const float> x, Vector<double> sums)

// mean, variance (F) from the sums over all ranks, both 0 if there is no token; the running ones move by `momentum`,
// unless there are fewer than two tokens: one has no unbiased variance. The variance is E[x^2] - E[x]^2: a mean of r
// deviations costs 2 log2 r of its 53 bits, and x itself has lost log2 r of its 24 by then.
PKM_OP(batch_norm_statistics, Vector<const double> sums, float momentum, Vector<float> mean, Vector<float> variance,
       Vector<float> running_mean, Vector<float> running_variance)

// y and normal = (x - mean) / sqrt(variance + epsilon), both (T, F). y may be x; normal may be empty.
PKM_OP(batch_norm_normalise, Matrix<const float> x, Vector<const float> mean, Vector<const float> variance,
       float epsilon, Vector<const float> weight, Vector<const float> bias, Matrix<float> normal, Matrix<float> y)

// sums (2, F) = over this rank's tokens, dy and dy * normal; these are added to dbias and dweight as well.
PKM_OP(batch_norm_backward_sums, Matrix<const float> normal, Matrix<const float> dy, Matrix<double> sums,
       Vector<float> dweight, Vector<float> dbias)

// dx (=) from the (2, F) sums over all ranks; batch_sums is the forward pass's, whose last element is the number of
// tokens. dx may be dy.
PKM_OP(batch_norm_backward_apply, Matrix<const float> normal, Matrix<const float> dy, Vector<const double> batch_sums,
       Matrix<const double> sums, Vector<const float> variance, float epsilon, Vector<const float> weight,
       Matrix<float> dx)

// The layer. Parameters NAME.weight (ones) and NAME.bias (zeros), states NAME.running_mean (zeros) and NAME.running_var
// (ones), all (F). Parameter gradients are this rank's share: the gradient buckets sum them over the ranks.
class SyncBatchNorm {
 public:
  static constexpr float kEpsilon = 1e-5F;
  static constexpr float kMomentum = 0.1F;

  SyncBatchNorm(Parameters& parameters, const std::string& name, int64_t features);

  // y (T, F) may be x. Training: every rank calls, with 0 tokens too: one all-reduce of 2 F + 1 doubles, and the
  // running statistics move. Otherwise: running statistics, no communication, nothing kept.
  void forward(StepContext& context, Matrix<const float> x, Matrix<float> y);

  // Of the last forward, in the same step: one all-reduce of 2 F doubles. dx (=) may be dy.
  void backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx);

 private:
  // In the step's arena: the normalised x rather than x, so that y may overwrite x and the backward pass need not
  // subtract again.
  struct Kept {
    Matrix<float> normal;
    Vector<double> sums;
    Vector<float> variance;
  };

  int64_t features_;
  Parameter<1> weight_;
  Parameter<1> bias_;
  State running_mean_;
  State running_variance_;
  Kept kept_;
};

}  // namespace pkmesh
