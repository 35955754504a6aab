// SPDX-License-Identifier: Apache-2.0
// Dynamic loss scaling (Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2). fp16 reaches down to
// 2^-24, gradients further: the loss is multiplied by a scale before the backward pass, the gradients by its inverse in
// the update. A step whose gradients overflow is skipped on all ranks (optim/clipping.h) and lowers the scale; many
// good ones in a row raise it. Scales are powers of two, so that scaling changes no bit of a gradient that is in range.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pkmesh {

class LossScaler {
 public:
  struct Options {
    double initial = 65536;          // a power of two
    int64_t growth_interval = 2000;  // good steps in a row after which the scale doubles
  };
  static constexpr double kLeast = 1;
  static constexpr double kMost = 0x1p24;

  LossScaler() = default;  // off: the scale is 1 for ever
  explicit LossScaler(const Options& options);

  bool on() const { return !state_.empty(); }
  double scale() const { return on() ? state_[0] : 1; }
  // After each step: whether its gradients were finite on all ranks. Doubles or halves the scale, within the limits.
  void update(bool finite);

  // Whether steps that overflow may end by themselves: with a lower scale.
  bool may_fall() const { return scale() > kLeast && on(); }
  // Steps that were not finite: no updates, which Adam's bias correction must not count.
  int64_t skipped() const { return on() ? static_cast<int64_t>(state_[2]) : 0; }

  // (scale, good steps since it last changed, skipped), for checkpoints; empty when off.
  std::span<double> state() { return state_; }

 private:
  Options options_;
  std::vector<double> state_;
};

}  // namespace pkmesh
