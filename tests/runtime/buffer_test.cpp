// SPDX-License-Identifier: Apache-2.0
#include "runtime/buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "runtime/bf16.h"
#include "runtime/fp16.h"

namespace pkmesh {
namespace {

TEST(Buffer, IsZeroedAndAlignedWhateverItsSize) {
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{1000}, int64_t{3} << 20}) {
    Buffer<float> buffer({}, count);
    EXPECT_EQ(buffer.count(), count);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0U);
    EXPECT_TRUE(std::all_of(buffer.view().begin(), buffer.view().end(), [](float x) { return x == 0.0F; }));
  }
}

TEST(Scratch, GrowsToWhatIsTakenAndStaysThere) {
  Scratch scratch;
  for (const int64_t count : {int64_t{1}, int64_t{1000}, int64_t{1} << 20, int64_t{8} << 20}) {
    int64_t* const memory = scratch.take<int64_t>(count);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 64, 0U);
    std::fill_n(memory, count, count);
    EXPECT_EQ(std::count(memory, memory + count, count), count);
    EXPECT_EQ(scratch.take<int64_t>(count), memory);
    EXPECT_EQ(scratch.take<int64_t>(count / 2), memory);
  }
}

TEST(Arena, GivesDisjointMemoryAndStopsGrowingAfterTheFirstStep) {
  Arena arena;
  int64_t growths_of_first_step = 0;
  for (int step = 0; step < 4; ++step) {
    auto a = arena.take<float>(1 << 20, 3);
    auto b = arena.take<int32_t>(5);
    auto c = arena.take<double>(1 << 22);
    std::fill(a.begin(), a.end(), 1.0F);
    std::fill(b.begin(), b.end(), 2);
    std::fill(c.begin(), c.end(), 3.0);
    EXPECT_TRUE(std::all_of(a.begin(), a.end(), [](float x) { return x == 1.0F; }));
    EXPECT_TRUE(std::all_of(b.begin(), b.end(), [](int32_t x) { return x == 2; }));
    arena.reset();
    if (step == 0) growths_of_first_step = arena.growths();
    EXPECT_EQ(arena.growths(), growths_of_first_step);
  }
}

TEST(Arena, HasRoomForStepsThatTakeALittleMore) {
  Arena arena;
  const auto step = [&](int64_t bytes) {
    for (int i = 0; i < 16; ++i) arena.take<char>(bytes / 16);
    arena.reset();
    return arena.growths();
  };
  const int64_t growths = step(40 << 20);
  for (const int percent : {101, 104, 99, 108, 112}) EXPECT_EQ(step((40 << 20) / 100 * percent), growths) << percent;
  EXPECT_GT(step(80 << 20), growths);
}

TEST(Arena, ScopesGiveBackAcrossChunks) {
  Arena arena;
  arena.take<char>(100);
  void* inner = nullptr;
  {
    ArenaScope scope(arena);
    inner = arena.take<char>(100).data();
    arena.take<char>(64 << 20);
  }
  EXPECT_EQ(arena.take<char>(100).data(), inner);
}

TEST(Bf16, RoundsToNearestEvenAndStochasticallyWithoutBias) {
  EXPECT_EQ(static_cast<float>(bf16(1.0F)), 1.0F);
  EXPECT_EQ(static_cast<float>(bf16(1.0F + 0x1p-8F)), 1.0F) << "a tie goes to the even neighbour";
  EXPECT_EQ(static_cast<float>(bf16(1.0F + 0x1.8p-7F)), 1.0F + 0x1p-6F);
  double sum = 0;
  for (uint32_t r = 0; r < 65536; ++r) sum += static_cast<float>(bf16::stochastic(1.0F + 0x1p-9F, r));
  EXPECT_NEAR(sum / 65536, 1.0 + 0x1p-9, 1e-9);
}

// By the definition: sign, 5 bits of exponent with a bias of 15, 10 of fraction.
double meaning(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);  // infinity aside
  return bits >> 15 != 0 ? -magnitude : magnitude;
}

fp16 from_bits(uint32_t bits) {
  fp16 x;
  x.bits = static_cast<uint16_t>(bits);
  return x;
}

TEST(Fp16, HoldsEveryNumberAndRoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const double here = meaning(static_cast<uint16_t>(bits));
    EXPECT_EQ(static_cast<double>(static_cast<float>(from_bits(bits))), here);
    EXPECT_EQ(static_cast<double>(static_cast<float>(from_bits(bits | 0x8000U))), -here);
    EXPECT_EQ(fp16(static_cast<float>(here)).bits, bits);
    // 0x7C00, infinity, stands where 65536 would.
    const auto middle = static_cast<float>((here + meaning(static_cast<uint16_t>(bits + 1))) / 2);
    EXPECT_EQ(fp16(middle).bits, bits % 2 == 0 ? bits : bits + 1) << "a tie goes to the even neighbour";
    EXPECT_EQ(fp16(-std::nextafter(middle, 0.0F)).bits, bits | 0x8000U);
    EXPECT_EQ(fp16(std::nextafter(middle, 1e9F)).bits, bits + 1);
  }
  EXPECT_EQ(fp16(INFINITY).bits, 0x7C00);
  EXPECT_EQ(fp16(1e30F).bits, 0x7C00);
  EXPECT_TRUE(std::isinf(static_cast<float>(from_bits(0xFC00))));
  EXPECT_TRUE(std::isnan(static_cast<float>(fp16(NAN))));
}

TEST(Fp16, RoundsStochasticallyWithoutBias) {
  // In the middle of the range, between the subnormal numbers, across the border of both, and what is held exactly.
  for (const float value : {1.0F + 0x1p-12F, -0.3F, 0x1.23p-18F, 0x1.8p-26F, -0x1.FFEp-15F, 0.25F, 0x1p-24F, 0.0F}) {
    double sum = 0;
    for (uint32_t r = 0; r < 65536; ++r) {
      const float rounded = static_cast<float>(fp16::stochastic(value, r));
      EXPECT_LT(std::abs(rounded - value), std::max(std::abs(value) * 0x1p-10F, 0x1p-24F));
      sum += rounded;
    }
    EXPECT_NEAR(sum / 65536, value, std::max(std::abs(value) * 1e-7, 1e-12)) << value;
  }
  for (const float value : {65504.0F, 65519.0F, 65535.0F, 65536.0F, 1e30F, 3.4e38F})
    for (const uint32_t r : {0U, 1U, 65535U}) {
      EXPECT_EQ(static_cast<float>(fp16::stochastic(value, r)), 65504.0F) << value;
      EXPECT_EQ(static_cast<float>(fp16::stochastic(-value, r)), -65504.0F) << value;
    }
}

}  // namespace
}  // namespace pkmesh
