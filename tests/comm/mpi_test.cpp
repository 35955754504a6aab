// SPDX-License-Identifier: Apache-2.0
// The contract over MPI: with the limits of a real run, with limits so low that everything goes in pieces, and as if
// the ranks were on several hosts (two ranks on each, where they come out even; one).
#include <algorithm>
#include <array>
#include <climits>
#include <cmath>

#include "comm/mpi_sums.h"
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
          {"MpiInPieces", over_mpi({.largest_count = 61, .bytes_at_once = 640, .watch = minute})},
          {"MpiHostsOfTwo", over_mpi({.bytes_at_once = 640, .ranks_each = 2, .watch = minute})},
          {"MpiHostsOfOne", over_mpi({.bytes_at_once = 640, .ranks_each = 1, .watch = minute})}};
}

namespace {

TEST(Mpi, RanksShareWorkAndOnOneHostMemory) {
  for (const int each : {0, 1, 2}) {
    const auto world = test_session().world({.ranks_each = each, .watch = std::chrono::minutes(1)});
    EXPECT_EQ(world->shares_work(), world->size() > 1);
    EXPECT_EQ(world->all_share_memory(), world->size() > 1 && world->hosts().count() == 1);
    world->barrier();
  }
}

// What crosses hosts of shares that are summed or gathered is half of an all-reduce.
TEST(Mpi, SharesCrossOncePerHost) {
  const auto world = test_session().world({.ranks_each = 2, .watch = std::chrono::minutes(1)});
  const auto crossed = [&](const std::function<Pending()>& start) {
    const Ledger before = world->ledger();
    start().wait();
    return (world->ledger() - before)[Purpose::kDense].crossed;
  };
  std::vector<float> data(1000);
  const double reduced =
      crossed([&] { return world->all_reduce_async(std::span(data), Reduction::kSum, Purpose::kDense); });
  EXPECT_DOUBLE_EQ(crossed([&] { return world->sum_shares_async(data, Wire::kExact, Purpose::kDense); }), reduced / 2);
  EXPECT_DOUBLE_EQ(crossed([&] { return world->gather_shares_async(data, Purpose::kDense); }), reduced / 2);
  const std::vector<bf16> changes(static_cast<size_t>(total(world->shares(1000, world->rank()))));
  EXPECT_DOUBLE_EQ(crossed([&] { return world->gather_changes_async(data, changes, Purpose::kDense); }), reduced / 4);
  world->barrier();
}

// Nothing but ops between the start and the end: who started sums need not wait for them to go on.
TEST(Mpi, StartedSumsGoOnBetweenOps) {
  const auto world = test_session().world({.ranks_each = 1, .watch = std::chrono::minutes(1)});
  double spent = 0;
  MpiSums sums(MPI_COMM_WORLD, world->rank(), world->hosts(), {.bytes_at_once = 1 << 16, .largest_count = INT_MAX},
               [&](double seconds) { spent += seconds; });
  std::vector<float> data(300'000, static_cast<float>(world->rank() + 1));  // in more pieces than are under way at once
  // The others begin once the first one has: its sums cannot end before it comes to an op.
  constexpr int kTag = 1;
  if (world->rank() > 0) MPI_Recv(nullptr, 0, MPI_BYTE, 0, kTag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  const auto number =
      sums.start(std::as_writable_bytes(std::span(data)), sizeof(float), MPI_FLOAT, MPI_SUM, Wire::kExact);
  for (int other = 1; world->rank() == 0 && other < world->size(); ++other)
    MPI_Send(nullptr, 0, MPI_BYTE, other, kTag, MPI_COMM_WORLD);
  Stream stream;
  Arena arena(Device{});
  std::array<int32_t, 2> rows = {3, 4};
  std::array<float, 2> weights = {0.5F, 0.5F};
  const auto patience = Clock::now() + std::chrono::seconds(50);
  while (!sums.done(number) && Clock::now() < patience) {
    arena.reset();
    ask(stream, arena, Matrix<const int32_t>(rows.data(), 1, 2), Matrix<const float>(weights.data(), 1, 2));
  }
  ASSERT_TRUE(sums.done(number));
  const auto expected = static_cast<float>(world->size() * (world->size() + 1) / 2);
  EXPECT_EQ(data, std::vector<float>(data.size(), expected));
  // Others may find all they need in start() itself.
  world->all_reduce(std::span(&spent, 1), Reduction::kMax, Purpose::kControl);
  EXPECT_TRUE(world->size() == 1 || spent > 0);
}

// Ranks need not wait at the same place: who waits for something else lets the others' sums go on.
TEST(Mpi, StartedSumsGoOnInEverythingThatWaits) {
  const auto world = test_session().world({.bytes_at_once = 4096, .watch = std::chrono::minutes(1)});
  const auto expected = static_cast<float>(world->size() * (world->size() + 1) / 2);
  const std::vector<std::function<void()>> waits = {
      [&] { world->barrier(); },
      [&] {
        double one = 1;
        world->all_reduce(std::span(&one, 1), Reduction::kSum, Purpose::kGate);
      },
      [&] {
        std::vector<float> all(static_cast<size_t>(world->size()));
        world->all_gather<float>(std::array{1.0F}, std::span(all), Purpose::kControl);
      },
      [&] {
        int one = 1;
        world->broadcast(std::span(&one, 1), world->size() - 1, Purpose::kControl);
      },
      [&] {
        std::vector<float> in(static_cast<size_t>(world->size()));
        auto out = in;
        world->all_to_all<float>(in, std::span(out), Purpose::kPartials);
      },
      [&] {
        std::vector<float> large(200'000);
        world->all_reduce(std::span(large), Reduction::kSum, Purpose::kControl);
      },
      [&] {
        std::vector<float> shared(1000);
        world->sum_shares_async(shared, Wire::kExact, Purpose::kDense).wait();
        world->gather_shares_async(shared, Purpose::kDense).wait();
      }};
  for (const auto& wait : waits) {
    std::vector<float> data(20'000, static_cast<float>(world->rank() + 1));
    auto pending = world->all_reduce_async(std::span(data), Reduction::kSum, Purpose::kDense);
    if (world->rank() == 0) wait();
    pending.wait();
    if (world->rank() != 0) wait();
    EXPECT_EQ(data, std::vector<float>(data.size(), expected));
  }
}

// A host sends what an all-reduce must: 2 (h-1)/h of the bytes, each of its ranks an equal part. Of uneven hosts every
// rank sends an equal part to every other.
TEST(Mpi, StartedSumsCrossOncePerHost) {
  const auto world = test_session().world({.ranks_each = 2, .watch = std::chrono::minutes(1)});
  std::vector<float> sums(1000);
  world->all_reduce_async(std::span(sums), Reduction::kSum, Purpose::kDense).wait();
  const std::vector<std::vector<double>> expected = {
      // of each rank, in worlds of 1, 2, ...
      {0},
      {0, 0},
      {2 * 4000.0 / 3, 2 * 4000.0 / 3, 2 * 4000.0 * 2 / 3},  // hosts {0, 0, 1}
      {2000, 2000, 2000, 2000}};
  ASSERT_LE(world->size(), 4);
  EXPECT_DOUBLE_EQ(world->ledger()[Purpose::kDense].crossed,
                   expected[static_cast<size_t>(world->size() - 1)][static_cast<size_t>(world->rank())]);
  world->barrier();
}

// Sums data over ranks; returns the bytes that this rank sent to other hosts.
double crossing(Communicator& world, std::span<float> data, Wire wire) {
  const Ledger before = world.ledger();
  world.sum_async(data, wire, Purpose::kDense).wait();
  return (world.ledger() - before)[Purpose::kDense].crossed;
}

// In bf16 half as much crosses; all ranks have the same bits, off by what rounding the hosts' sums and the whole may
// do.
TEST(Mpi, SumsInBf16AreRoundedAlikeOnAllRanks) {
  constexpr size_t kCount = 5000;
  for (const int each : {1, 2}) {
    const auto world =
        test_session().world({.bytes_at_once = 4096, .ranks_each = each, .watch = std::chrono::minutes(1)});
    std::vector<float> mine(kCount);
    std::vector<double> exact(kCount);
    std::vector<double> sizes(kCount);  // sums of |parts|
    for (int r = 0; r < world->size(); ++r) {
      const Random random(3, "bf16", r);
      for (size_t i = 0; i < kCount; ++i) {
        const float part = random.uniform(i) - 0.5F;
        if (r == world->rank()) mine[i] = part;
        exact[i] += part;
        sizes[i] += std::abs(part);
      }
    }
    auto exactly = mine;
    const double all_of_it = crossing(*world, exactly, Wire::kExact);
    EXPECT_DOUBLE_EQ(crossing(*world, mine, Wire::kBf16), all_of_it / 2);
    const bool several_hosts = all_of_it > 0;
    for (size_t i = 0; i < kCount; ++i) {
      EXPECT_NEAR(exactly[i], exact[i], 0x1p-22 * sizes[i]) << i;
      EXPECT_NEAR(mine[i], exact[i], (several_hosts ? 0x1p-7 : 0x1p-22) * sizes[i]) << i;
    }
    const auto is_bf16 = [](float value) { return value == static_cast<float>(bf16(value)); };
    EXPECT_EQ(std::ranges::all_of(mine, is_bf16), several_hosts);
    std::vector<float> all(kCount * static_cast<size_t>(world->size()));
    world->all_gather<float>(mine, std::span(all), Purpose::kControl);
    for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], mine[i % kCount]) << "rank " << i / kCount;
    for (const size_t count : {0, 1, 3}) {  // fewer than ranks
      std::vector<float> few(count, 1.0F);
      crossing(*world, few, Wire::kBf16);
      EXPECT_EQ(few, std::vector<float>(count, static_cast<float>(world->size())));
    }
    world->barrier();
  }
}

}  // namespace
}  // namespace pkmesh
