// SPDX-License-Identifier: Apache-2.0
#include "layers/vector_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace pkmesh::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(VectorMath, Exp) {
  double worst = 0;
  for (float x = -87.3F; x < 88.0F; x += 0.00037F) {
    const double exact = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::abs(static_cast<double>(fast_exp(x)) / exact - 1));
  }
  EXPECT_LT(worst, 2e-7);
  EXPECT_EQ(fast_exp(0.0F), 1.0F);
  EXPECT_EQ(fast_exp(-0.0F), 1.0F);
  EXPECT_EQ(fast_exp(-88.0F), 0.0F);
  EXPECT_EQ(fast_exp(-kInfinity), 0.0F);
  EXPECT_EQ(fast_exp(kInfinity), fast_exp(88.0F));
  EXPECT_TRUE(std::isnan(fast_exp(kNan)));
}

TEST(VectorMath, Sigmoid) {
  double worst = 0;
  for (float x = -87.0F; x < 100.0F; x += 0.00041F) {
    const double exact = 1 / (1 + std::exp(-static_cast<double>(x)));
    worst = std::max(worst, std::abs(static_cast<double>(fast_sigmoid(x)) / exact - 1));
  }
  EXPECT_LT(worst, 4e-7);
  EXPECT_EQ(fast_sigmoid(0.0F), 0.5F);
  EXPECT_EQ(fast_sigmoid(kInfinity), 1.0F);
  EXPECT_LT(fast_sigmoid(-kInfinity), 1e-38F);
  EXPECT_TRUE(std::isnan(fast_sigmoid(kNan)));
}

TEST(VectorMath, Normal) {
  double worst_cumulative = 0;
  double worst_tail = 0;  // relative, where 1 + erf(x / sqrt 2) in float would have no correct digit left
  double worst_density = 0;
  for (float x = -12.0F; x < 12.0F; x += 0.00013F) {
    const double exact = 0.5 * std::erfc(-static_cast<double>(x) / std::sqrt(2.0));
    const double density = std::exp(-0.5 * static_cast<double>(x) * x) / std::sqrt(2 * M_PI);
    const Normal normal = fast_normal(x);
    worst_cumulative = std::max(worst_cumulative, std::abs(static_cast<double>(normal.cumulative) - exact));
    worst_density = std::max(worst_density, std::abs(static_cast<double>(normal.density) - density));
    if (x < 0) worst_tail = std::max(worst_tail, std::abs(static_cast<double>(normal.cumulative) / exact - 1));
  }
  EXPECT_LT(worst_cumulative, 2e-7);
  EXPECT_LT(worst_density, 1e-7);
  EXPECT_LT(worst_tail, 5e-6);
  EXPECT_EQ(fast_normal(kInfinity).cumulative, 1.0F);
  EXPECT_EQ(fast_normal(-kInfinity).cumulative, 0.0F);
  EXPECT_TRUE(std::isnan(fast_normal(kNan).cumulative));
}

// The loop below is vectorised where the calls above may not be: both must give the same.
TEST(VectorMath, VectorsKeepNansAndEdges) {
  float x[64];
  for (int i = 0; i < 64; ++i) x[i] = static_cast<float>(i) * 3.7F - 120.0F;
  x[5] = kNan;
  x[17] = kInfinity;
  x[40] = -kInfinity;
  float y[64];
#pragma omp simd
  for (int i = 0; i < 64; ++i) y[i] = fast_exp(x[i]);
  for (int i = 0; i < 64; ++i) {
    if (i == 5)
      EXPECT_TRUE(std::isnan(y[i]));
    else
      EXPECT_EQ(y[i], fast_exp(x[i])) << x[i];
  }
}

}  // namespace
}  // namespace pkmesh::cpu
