// SPDX-License-Identifier: Apache-2.0
// Judge of batch normalisation: the formulas as written, over the tokens of all ranks at once. Its gradients are judged
// by finite differences of this.
#pragma once

#include "tests/reference/numbers.h"

namespace pkmesh::reference {

struct BatchNorm {
  Numbers y, mean, variance, unbiased;
};

// x (T, F) with F = weight.size().
inline BatchNorm batch_norm(const Numbers& x, const Numbers& weight, const Numbers& bias, double epsilon) {
  const size_t width = weight.size();
  const size_t tokens = x.size() / width;
  BatchNorm result{Numbers(x.size()), Numbers(width), Numbers(width), Numbers(width)};
  const auto count = static_cast<double>(tokens);
  for (size_t j = 0; j < width; ++j) {
    double squares = 0;
    for (size_t t = 0; t < tokens; ++t) result.mean[j] += x[t * width + j] / count;
    for (size_t t = 0; t < tokens; ++t) squares += std::pow(x[t * width + j] - result.mean[j], 2);
    result.variance[j] = squares / count;
    result.unbiased[j] = squares / (count - 1);
    for (size_t t = 0; t < tokens; ++t)
      result.y[t * width + j] =
          (x[t * width + j] - result.mean[j]) / std::sqrt(result.variance[j] + epsilon) * weight[j] + bias[j];
  }
  return result;
}

}  // namespace pkmesh::reference
