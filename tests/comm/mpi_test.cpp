// SPDX-License-Identifier: Apache-2.0
// The contract over MPI: with the limits of a real run, with limits so low that everything goes in pieces, and as if
// the ranks were on several hosts (two ranks on each, where they come out even; one).
#include <algorithm>
#include <array>
#include <cmath>

#include "comm/route.h"
#include "contract.h"
#include "mpi_main.h"
#include "runtime/bf16.h"
#include "runtime/random.h"

namespace pkmesh {

std::vector<ContractWorld> contract_worlds() {
  const auto minute = std::chrono::minutes(1);
  const auto over_mpi = [](const MpiOptions& options) {
    return [options](const RankBody& body) {
      const auto world = test_session().world(options);
      body(*world);
    };
  };
  return {{"Mpi", over_mpi({.watch = minute})},
          {"MpiInPieces", over_mpi({.largest_count = 61, .reduce_piece_bytes = 148, .watch = minute})},
          {"MpiHostsOfTwo", over_mpi({.bytes_at_once = 640, .ranks_each = 2, .watch = minute})},
          {"MpiHostsOfOne", over_mpi({.bytes_at_once = 640, .ranks_each = 1, .watch = minute})}};
}

namespace {

// Nothing but ops between the start and the end: who started sums need not wait for them to go on.
TEST(Mpi, StartedSumsGoOnBetweenOps) {
  const auto world = test_session().world({.ranks_each = 1, .watch = std::chrono::minutes(1)});
  Stream stream;
  Arena arena(Device{});
  world->use(stream);
  constexpr size_t kFloats = 3'000'000;  // of several pieces, more than are under way at once
  std::vector<float> sums(kFloats, static_cast<float>(world->rank() + 1));
  const auto expected = static_cast<float>(world->size() * (world->size() + 1) / 2);
  auto pending = world->all_reduce_async(std::span(sums), Reduction::kSum, Purpose::kDense);
  std::array<int32_t, 2> rows = {3, 4};
  std::array<float, 2> weights = {0.5F, 0.5F};
  const auto patience = Clock::now() + std::chrono::seconds(50);
  const auto over = [&] { return std::ranges::all_of(sums, [&](float sum) { return sum == expected; }); };
  while (!over() && Clock::now() < patience) {
    arena.reset();
    ask(stream, arena, Matrix<const int32_t>(rows.data(), 1, 2), Matrix<const float>(weights.data(), 1, 2));
  }
  EXPECT_TRUE(over());
  pending.wait();
  EXPECT_GT(world->ledger()[Purpose::kDense].seconds, 0);
  world->leave(stream);
  world->barrier();
}

// A host sends what an all-reduce must: 2 (h-1)/h of the bytes, each of its ranks an equal part.
TEST(Mpi, StartedSumsCrossOncePerHost) {
  const int each = test_session().world()->size() == 4 ? 2 : 1;
  const auto world = test_session().world({.ranks_each = each, .watch = std::chrono::minutes(1)});
  std::vector<float> sums(1000);
  world->all_reduce_async(std::span(sums), Reduction::kSum, Purpose::kDense).wait();
  const double hosts = world->size() / each;
  EXPECT_DOUBLE_EQ(world->ledger()[Purpose::kDense].crossed, 2 * 4000.0 / each * (hosts - 1) / hosts);
  world->barrier();
}

// In bf16 half as much crosses; all ranks have the same bits, off by what rounding the hosts' sums and the whole may
// do.
TEST(Mpi, SumsInBf16AreRoundedAlikeOnAllRanks) {
  for (const int each : {1, 2}) {
    const auto world =
        test_session().world({.bytes_at_once = 4096, .ranks_each = each, .watch = std::chrono::minutes(1)});
    for (const int64_t count : {0, 1, 3, 5000}) {
      std::vector<float> sums(static_cast<size_t>(count));
      std::vector<double> exact(sums.size());
      std::vector<double> sizes(sums.size());  // sums of |parts|
      for (int r = 0; r < world->size(); ++r) {
        const Random random(3, "bf16", r);
        for (size_t i = 0; i < sums.size(); ++i) {
          const float part = random.uniform(i) - 0.5F;
          if (r == world->rank()) sums[i] = part;
          exact[i] += part;
          sizes[i] += std::abs(part);
        }
      }
      const Ledger before = world->ledger();
      world->sum_async(sums, Wire::kBf16, Purpose::kDense).wait();
      const int64_t ranks_each = std::max(world->hosts().ranks_each(), 1);
      const double hosts = static_cast<double>(world->size()) / static_cast<double>(ranks_each);
      EXPECT_DOUBLE_EQ((world->ledger() - before)[Purpose::kDense].crossed,
                       2.0 * static_cast<double>(count * 2) / static_cast<double>(ranks_each) * (hosts - 1) / hosts);
      const bool rounds = hosts > 1;
      bool rounded = false;
      for (size_t i = 0; i < sums.size(); ++i) {
        EXPECT_NEAR(sums[i], exact[i], (rounds ? 0x1p-8 : 0x1p-22) * sizes[i]) << i << " of " << count;
        if (rounds) {
          EXPECT_EQ(sums[i], static_cast<float>(bf16(sums[i]))) << "the whole sum is rounded";
        }
        rounded = rounded || sums[i] != static_cast<float>(exact[i]);
      }
      if (rounds && count == 5000) {
        EXPECT_TRUE(rounded);
      }
      std::vector<float> all(sums.size() * static_cast<size_t>(world->size()));
      world->all_gather(sums, std::span(all), Purpose::kControl);
      for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], sums[i % sums.size()]) << "rank " << i / sums.size();
    }
    world->barrier();
  }
}

}  // namespace
}  // namespace pkmesh
