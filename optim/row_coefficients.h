// SPDX-License-Identifier: Apache-2.0
// For update_rows() on any device: what a row's update multiplies by, with the bias correction of its t-th one in
// `rate` (and in `eps`, where that is added after it).
#pragma once

#include <cmath>

#include "optim/sparse_adam.h"

namespace pkmesh {

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
  const bool after = options.update == RowAdamOptions::Update::kAll;
  return {.one_minus_beta1 = static_cast<float>(1.0 - options.beta1),
          .beta2 = static_cast<float>(options.beta2),
          .one_minus_beta2 = static_cast<float>(1.0 - options.beta2),
          .rate = static_cast<float>(update.lr * root2 / correction1),
          .eps = static_cast<float>(after ? options.eps * root2 : options.eps)};
}

}  // namespace pkmesh
