// SPDX-License-Identifier: Apache-2.0
#include "launcher/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace pkmesh {
namespace {

const std::vector<float> kLogits = {std::log(0.1F), std::log(0.6F), std::log(0.05F), std::log(0.25F)};

TEST(Sampling, TemperatureZeroTakesTheLikeliestAndTheLowestAmongEquals) {
  EXPECT_EQ(draw_token(kLogits, 0, 1, 0.999), 1);
  EXPECT_EQ(draw_token(std::vector<float>{1, 3, 3}, 0, 1, 0.5), 1);
}

TEST(Sampling, DrawsInProportion) {
  std::vector<int> counts(4);
  for (int i = 0; i < 1000; ++i) ++counts[draw_token(kLogits, 1, 1, (i + 0.5) / 1000)];
  EXPECT_EQ(counts, (std::vector<int>{100, 600, 50, 250}));
}

TEST(Sampling, NucleusLeavesTheTailOut) {
  std::vector<int> counts(4);
  for (int i = 0; i < 850; ++i) ++counts[draw_token(kLogits, 1, 0.8, (i + 0.5) / 850)];
  EXPECT_EQ(counts, (std::vector<int>{0, 600, 0, 250}));
  EXPECT_EQ(draw_token(kLogits, 1, 1e-6, 0.999), 1) << "one token always remains";
}

TEST(Sampling, HighTemperatureFlattensLowTemperatureSharpens) {
  std::vector<int> hot(4);
  std::vector<int> cold(4);
  for (int i = 0; i < 1000; ++i) {
    ++hot[draw_token(kLogits, 1000, 1, (i + 0.5) / 1000)];
    ++cold[draw_token(kLogits, 0.05, 1, (i + 0.5) / 1000)];
  }
  for (const int count : hot) EXPECT_NEAR(count, 250, 5);
  EXPECT_EQ(cold[1], 1000);
}

}  // namespace
}  // namespace pkmesh
