// SPDX-License-Identifier: Apache-2.0
#include "runtime/buffer.h"

#include <gtest/gtest.h>

#include "runtime/bf16.h"

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

}  // namespace
}  // namespace pkmesh
