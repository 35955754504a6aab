// SPDX-License-Identifier: Apache-2.0
// For sparse_adam's kernels on any device.
#pragma once

#include <cmath>
#include <limits>

#include "optim/sparse_adam.h"

namespace pkmesh {

// What a row's update multiplies by, with the bias correction of its t-th one in `rate` (and in `eps`, where that is
// added after it).
struct RowCoefficients {
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float rate;
  float eps;
};

PKM_HOST_DEVICE inline RowCoefficients row_coefficients(const RowUpdate& update, int64_t t) {
  const auto& options = update.options;
  const double root2 = std::sqrt(1.0 - std::pow(options.beta2, static_cast<double>(t)));
  const double correction1 = 1.0 - std::pow(options.beta1, static_cast<double>(t));
  const bool after = options.update == RowAdamOptions::Update::kDense;
  return {.one_minus_beta1 = static_cast<float>(1.0 - options.beta1),
          .beta2 = static_cast<float>(options.beta2),
          .one_minus_beta2 = static_cast<float>(1.0 - options.beta2),
          .rate = static_cast<float>(update.lr * root2 / correction1),
          .eps = static_cast<float>(after ? options.eps * root2 : options.eps)};
}

// No gradient, nor what adds up on the way to it, is longer than the sum of all weights times the longest output
// gradient.
PKM_HOST_DEVICE inline double squares_bound_of(double sum_of_weights, double longest) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  const double bound = sum_of_weights * longest;
  return bound <= kLargest ? bound * bound : kInfinite;
}

}  // namespace pkmesh
