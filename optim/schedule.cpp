// SPDX-License-Identifier: Apache-2.0
#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "runtime/check.h"

namespace pkmesh {
namespace {

double cosine(const ScheduleOptions& options, int64_t step) {
  const int64_t length = std::max<int64_t>(options.total_steps - options.warmup_steps, 1);
  const double done = std::min(1.0, static_cast<double>(step - options.warmup_steps) / static_cast<double>(length));
  return options.min + (options.peak - options.min) * 0.5 * (1.0 + std::cos(std::numbers::pi * done));
}

}  // namespace

double learning_rate(const ScheduleOptions& options, int64_t step) {
  PKM_CHECK(step >= 1, "steps count from 1, got {}", step);
  if (step < options.warmup_steps) {
    const double done = static_cast<double>(step) / static_cast<double>(options.warmup_steps);
    return options.warmup_init + (options.peak - options.warmup_init) * done;
  }
  switch (options.kind) {
    case ScheduleKind::kConstant:
      return options.peak;
    case ScheduleKind::kInverseSqrt: {
      const int64_t warmup = std::max<int64_t>(options.warmup_steps, 1);
      return options.peak * std::sqrt(static_cast<double>(warmup) / static_cast<double>(step));
    }
    case ScheduleKind::kCosine:
      return cosine(options, step);
  }
  PKM_CHECK(false, "unknown schedule {}", static_cast<int>(options.kind));
}

}  // namespace pkmesh
