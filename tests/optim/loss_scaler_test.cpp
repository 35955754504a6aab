// SPDX-License-Identifier: Apache-2.0
#include "optim/loss_scaler.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/check.h"

namespace pkmesh {
namespace {

TEST(LossScaler, HalvesOnOverflowAndDoublesAfterEnoughGoodSteps) {
  LossScaler scaler({.initial = 1024, .growth_interval = 3});
  const auto after = [&](bool finite) {
    scaler.update(finite);
    return scaler.scale();
  };
  EXPECT_EQ(after(true), 1024);
  EXPECT_EQ(after(true), 1024);
  EXPECT_EQ(after(false), 512) << "the good steps before do not count any more";
  EXPECT_EQ(after(false), 256);
  EXPECT_EQ(after(true), 256);
  EXPECT_EQ(after(true), 256);
  EXPECT_EQ(after(true), 512);
  EXPECT_EQ(after(true), 512) << "counting starts again after the scale has grown";
  EXPECT_EQ(after(true), 512);
  EXPECT_EQ(after(true), 1024);
}

TEST(LossScaler, StaysWithinItsLimits) {
  LossScaler low({.initial = 2, .growth_interval = 1});
  for (int i = 0; i < 5; ++i) low.update(false);
  EXPECT_EQ(low.scale(), LossScaler::kLeast);
  LossScaler high({.initial = LossScaler::kMost / 2, .growth_interval = 1});
  for (int i = 0; i < 5; ++i) high.update(true);
  EXPECT_EQ(high.scale(), LossScaler::kMost);
}

TEST(LossScaler, GoesOnFromItsState) {
  const LossScaler::Options options = {.initial = 64, .growth_interval = 2};
  LossScaler whole(options);
  whole.update(false);
  whole.update(true);
  LossScaler resumed(options);
  std::ranges::copy(whole.state(), resumed.state().begin());
  for (int i = 0; i < 3; ++i) {
    whole.update(true);
    resumed.update(true);
    EXPECT_EQ(resumed.scale(), whole.scale());
  }
  EXPECT_EQ(whole.scale(), 128);
}

TEST(LossScaler, IsOffUnlessItIsAskedFor) {
  LossScaler off;
  off.update(false);
  EXPECT_FALSE(off.on());
  EXPECT_EQ(off.scale(), 1);
  EXPECT_TRUE(off.state().empty());
  EXPECT_THROW(LossScaler({.initial = 1000}), InternalError);
}

}  // namespace
}  // namespace pkmesh
