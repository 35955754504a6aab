// SPDX-License-Identifier: Apache-2.0
#include "runtime/random.h"

#include <gtest/gtest.h>

#include <vector>

namespace pkmesh {
namespace {

TEST(Random, IsAFunctionOfSeedNameStepAndIndex) {
  const Random a(1, "dropout", 7);
  EXPECT_EQ(a.bits(123), Random(1, "dropout", 7).bits(123));
  EXPECT_NE(a.bits(123), Random(2, "dropout", 7).bits(123));
  EXPECT_NE(a.bits(123), Random(1, "dropouu", 7).bits(123));
  EXPECT_NE(a.bits(123), Random(1, "dropout", 8).bits(123));
  EXPECT_NE(a.bits(123), a.bits(124));
}

TEST(Random, NormalsHaveMeanZeroVarianceOneAndDoNotDependOnTheSlice) {
  const Random random(3, "values");
  std::vector<float> all(40000);
  random.normals(0, static_cast<int64_t>(all.size()), 1.0F, all.data());
  std::vector<float> part(10);
  random.normals(1000, 10, 2.0F, part.data());
  double sum = 0;
  double squares = 0;
  for (const float x : all) {
    sum += x;
    squares += static_cast<double>(x) * x;
  }
  EXPECT_NEAR(sum / 40000, 0.0, 0.02);
  EXPECT_NEAR(squares / 40000, 1.0, 0.02);
  for (size_t i = 0; i < part.size(); ++i) EXPECT_EQ(part[i], 2.0F * all[1000 + i]);
  EXPECT_EQ(random.normal(1003), all[1003]);
}

}  // namespace
}  // namespace pkmesh
