// SPDX-License-Identifier: Apache-2.0
#include "optim/schedule.h"

#include <gtest/gtest.h>

#include "runtime/check.h"

namespace pkmesh {
namespace {

ScheduleOptions options_of(ScheduleKind kind) {
  return {.kind = kind, .peak = 1e-3, .warmup_init = 1e-5, .warmup_steps = 100, .min = 1e-4, .total_steps = 300};
}

TEST(Schedule, EveryKindWarmsUpOnOneLineFromInitToPeak) {
  for (const auto kind : {ScheduleKind::kConstant, ScheduleKind::kInverseSqrt, ScheduleKind::kCosine}) {
    const auto options = options_of(kind);
    EXPECT_DOUBLE_EQ(learning_rate(options, 1), 1e-5 + 9.9e-4 / 100);
    EXPECT_DOUBLE_EQ(learning_rate(options, 50), 0.5 * (1e-5 + 1e-3));
    EXPECT_DOUBLE_EQ(learning_rate(options, 100), 1e-3);
  }
}

TEST(Schedule, InverseSqrtHalvesWhenTheStepQuadruples) {
  const auto options = options_of(ScheduleKind::kInverseSqrt);
  EXPECT_DOUBLE_EQ(learning_rate(options, 400), 0.5e-3);
  EXPECT_DOUBLE_EQ(learning_rate(options, 10000), 1e-4);
}

TEST(Schedule, CosineIsHalfwayInTheMiddleAndStaysAtItsMinimum) {
  const auto options = options_of(ScheduleKind::kCosine);
  EXPECT_DOUBLE_EQ(learning_rate(options, 200), 0.5 * (1e-3 + 1e-4));
  EXPECT_NEAR(learning_rate(options, 150), 1e-4 + 9e-4 * 0.8535533905932737, 1e-15);
  EXPECT_DOUBLE_EQ(learning_rate(options, 300), 1e-4);
  EXPECT_DOUBLE_EQ(learning_rate(options, 1000), 1e-4);
}

TEST(Schedule, ConstantStaysAtThePeak) {
  EXPECT_DOUBLE_EQ(learning_rate(options_of(ScheduleKind::kConstant), 123456), 1e-3);
}

TEST(Schedule, WithoutWarmupTheFirstStepIsAtThePeak) {
  for (const auto kind : {ScheduleKind::kConstant, ScheduleKind::kInverseSqrt, ScheduleKind::kCosine}) {
    auto options = options_of(kind);
    options.warmup_steps = 0;
    options.total_steps = 1000000000;
    EXPECT_NEAR(learning_rate(options, 1), 1e-3, 1e-12);
  }
}

TEST(Schedule, StepsCountFromOne) {
  EXPECT_THROW(learning_rate(ScheduleOptions{}, 0), InternalError);
}

}  // namespace
}  // namespace pkmesh
