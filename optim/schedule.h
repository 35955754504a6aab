// SPDX-License-Identifier: Apache-2.0
// Learning rates are pure functions of the step: nothing to save, nothing to restore.
// Steps count from 1: learning_rate(options, t) is the rate of the t-th update.
#pragma once

#include <cstdint>

namespace pkmesh {

enum class ScheduleKind {
  kConstant,     // peak
  kInverseSqrt,  // peak * sqrt(warmup / t): "Attention Is All You Need", section 5.3, with the peak as the parameter
  kCosine,       // half a cosine from peak at the end of the warm-up to min at total_steps, then min
};

struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::kInverseSqrt;
  double peak = 2.5e-4;
  double warmup_init = 1e-7;  // the line of the warm-up starts here at t = 0 and reaches the peak at t = warmup_steps
  int64_t warmup_steps = 0;   // 0: no warm-up; kInverseSqrt then decays from t = 1
  double min = 0;             // kCosine only
  int64_t total_steps = 0;    // kCosine only; at least warmup_steps
};

double learning_rate(const ScheduleOptions& options, int64_t step);

}  // namespace pkmesh
