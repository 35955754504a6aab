// SPDX-License-Identifier: Apache-2.0
#include "optim/loss_scaler.h"

#include <algorithm>
#include <cmath>

#include "runtime/check.h"

namespace pkmesh {

LossScaler::LossScaler(const Options& options) : options_(options), state_({options.initial, 0, 0}) {
  int exponent = 0;
  PKM_CHECK(std::frexp(options.initial, &exponent) == 0.5, "loss scale {} is not a power of two", options.initial);
  PKM_CHECK(options.growth_interval >= 1, "loss scale: growth interval {}", options.growth_interval);
}

void LossScaler::update(bool finite) {
  if (!on()) return;
  double& scale = state_[0];
  double& good = state_[1];
  good = finite ? good + 1 : 0;
  if (!finite) {
    ++state_[2];
    scale = std::max(scale / 2, kLeast);
  } else if (good >= static_cast<double>(options_.growth_interval)) {
    scale = std::min(scale * 2, kMost);
    good = 0;
  }
}

}  // namespace pkmesh
