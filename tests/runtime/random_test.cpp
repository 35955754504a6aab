// SPDX-License-Identifier: Apache-2.0
#include "runtime/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
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

// 2^34 - 24: blocks whose index carries into its upper word.
TEST(Random, BitsInBulkAreBitsOneByOne) {
  const Random random(3, "bulk", (int64_t{5} << 32) + 6);
  for (const uint64_t begin : {uint64_t{0}, uint64_t{1}, uint64_t{7}, (uint64_t{1} << 34) - 24}) {
    for (const int64_t count : {0, 1, 2, 5, 31, 36, 100}) {
      std::vector<uint32_t> out(static_cast<size_t>(count) + 1, 77);
      random.fill_bits(begin, count, out.data());
      for (int64_t j = 0; j < count; ++j)
        ASSERT_EQ(out[static_cast<size_t>(j)], random.bits(begin + static_cast<uint64_t>(j))) << begin << " + " << j;
      EXPECT_EQ(out.back(), 77U);
    }
  }
}

// Each bit of a word is fair and independent of the same bit of its neighbours in the sequence and among the blocks.
TEST(Random, WordsOfASequenceAreFairBitByBit) {
  const Random random(5, "rounding", 2);
  constexpr int kBlocks = 400;
  constexpr int kWords = 256;
  for (int bit = 0; bit < 32; ++bit) {
    int ones = 0;
    int as_the_one_before = 0;
    int as_in_the_block_before = 0;
    for (int block = 1; block < kBlocks; ++block) {
      const WordSequence words(random.block(static_cast<uint64_t>(block)));
      const WordSequence before(random.block(static_cast<uint64_t>(block - 1)));
      for (uint32_t i = 1; i < kWords; ++i) {
        ones += static_cast<int>(words(i) >> bit & 1);
        as_the_one_before += static_cast<int>(~(words(i) ^ words(i - 1)) >> bit & 1);
        as_in_the_block_before += static_cast<int>(~(words(i) ^ before(i)) >> bit & 1);
      }
    }
    constexpr double kCount = (kBlocks - 1) * (kWords - 1);
    const double four_deviations = 4 * 0.5 * std::sqrt(kCount);
    EXPECT_NEAR(ones, kCount / 2, four_deviations) << bit;
    EXPECT_NEAR(as_the_one_before, kCount / 2, four_deviations) << bit;
    EXPECT_NEAR(as_in_the_block_before, kCount / 2, four_deviations) << bit;
  }
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

TEST(Random, NormalsAreBoxMullersOfTheBits) {
  const Random random(4, "values");
  constexpr int64_t kCount = 100000;
  std::vector<float> drawn(kCount);
  random.normals(0, kCount, 1.0F, drawn.data());
  for (int64_t i = 0; i < kCount; i += 2) {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - static_cast<double>(random.uniform(i))));
    const double angle = 2.0 * std::numbers::pi * static_cast<double>(random.uniform(i + 1));
    ASSERT_NEAR(drawn[i], radius * std::cos(angle), 1e-6 * radius) << i;
    ASSERT_NEAR(drawn[i + 1], radius * std::sin(angle), 1e-6 * radius) << i;
  }
}

}  // namespace
}  // namespace pkmesh
