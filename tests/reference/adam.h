// SPDX-License-Identifier: Apache-2.0
// Adam and AdamW for one element in double precision, written as in the papers.
#pragma once

#include <cmath>
#include <cstdint>

namespace pkmesh::reference {

struct AdamState {
  double value;
  double first = 0;
  double second = 0;
};

struct AdamSettings {
  double beta1;
  double beta2;
  double eps;
  double weight_decay = 0;
  // torch.optim.SparseAdam adds eps to the root of the second moment before the bias correction, torch.optim.Adam
  // after.
  bool eps_before_correction = false;
};

// The t-th update with gradient g. `second_input` is what the second moment averages: g^2, or a row's mean of g^2.
inline void adam(AdamState& state, const AdamSettings& settings, double lr, int64_t t, double g, double second_input) {
  const double correction1 = 1 - std::pow(settings.beta1, static_cast<double>(t));
  const double correction2 = 1 - std::pow(settings.beta2, static_cast<double>(t));
  state.first = settings.beta1 * state.first + (1 - settings.beta1) * g;
  state.second = settings.beta2 * state.second + (1 - settings.beta2) * second_input;
  const double root = settings.eps_before_correction ? (std::sqrt(state.second) + settings.eps) / std::sqrt(correction2)
                                                     : std::sqrt(state.second / correction2) + settings.eps;
  state.value -= lr * settings.weight_decay * state.value;
  state.value -= lr * (state.first / correction1) / root;
}

}  // namespace pkmesh::reference
