// SPDX-License-Identifier: Apache-2.0
#include "comm/shared_rows.h"

#include "contract.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

constexpr int64_t kRows = 90;
constexpr int64_t kWidth = 7;

// Cut so that rows lie in one rank's share, in two, and in all, and some shares are empty.
std::vector<std::vector<Share>> shares_of(int ranks) {
  std::vector<std::vector<Share>> shares(static_cast<size_t>(ranks));
  int64_t begin = 0;
  for (int64_t piece = 0; begin < kRows * kWidth + 50; ++piece) {
    const int64_t end = std::min(begin + 1 + piece * 5 % 23, kRows * kWidth + 50);
    shares[static_cast<size_t>((piece + piece / 3) % ranks)].push_back({begin, end});
    begin = end;
  }
  return shares;
}

std::vector<int32_t> ids_of(int rank, int step) {
  std::vector<int32_t> ids;
  for (int i = 0; i < (rank == 1 ? 0 : 20 - step); ++i)  // the second rank asks for none
    ids.push_back(static_cast<int32_t>((i * 37 + rank * 11 + step * 5) % (kRows / 2) * 2 % kRows));
  return ids;
}

TEST_P(ContractTest, RowsAreReadAndAddedToWhereTheirElementsAre) {
  on_ranks([](Communicator& world) {
    const auto shares = shares_of(world.size());
    const std::vector<Share>& mine = shares[static_cast<size_t>(world.rank())];
    SharedRows rows(world, kWidth, 20, shares);
    for (int step = 0; step < 3; ++step) {
      const auto ids = ids_of(world.rank(), step);
      std::vector<int32_t> places(ids.size());
      rows.ask(ids, places);

      // Each rank knows the elements that it looks after; the others are wrong here.
      const auto value = [&](int64_t element) { return static_cast<float>(element * 3 + step); };
      std::vector<float> flat(static_cast<size_t>(kRows * kWidth + 50));
      for (size_t i = 0; i < flat.size(); ++i) flat[i] = value(static_cast<int64_t>(i));
      spoil_but(mine, flat);
      std::vector<float> read(static_cast<size_t>(rows.count() * kWidth));
      rows.fetch(flat, read);
      for (size_t i = 0; i < ids.size(); ++i)
        for (int64_t j = 0; j < kWidth; ++j)
          EXPECT_EQ(read[static_cast<size_t>(places[i] * kWidth + j)], value(ids[i] * kWidth + j)) << ids[i];

      // Each occurrence of a row adds 1 + the rank.
      std::vector<float> gradients(read.size());
      for (const int32_t place : places)
        for (int64_t j = 0; j < kWidth; ++j)
          gradients[static_cast<size_t>(place * kWidth + j)] += static_cast<float>(1 + world.rank());
      std::vector<float> sums(flat.size(), 0.5F);
      auto pending = rows.add(gradients, sums);
      std::ranges::fill(gradients, 1e9F);  // they have been read
      pending.wait();
      std::vector<float> expected(flat.size(), 0.5F);
      for (int rank = 0; rank < world.size(); ++rank)
        for (const int32_t id : ids_of(rank, step))
          for (int64_t j = 0; j < kWidth; ++j)
            expected[static_cast<size_t>(id * kWidth + j)] += static_cast<float>(1 + rank);
      for (const Share& share : mine)
        for (auto i = static_cast<size_t>(share.begin); i < static_cast<size_t>(share.end); ++i)
          EXPECT_EQ(sums[i], expected[i]) << i;
    }
    std::vector<int32_t> more(21);
    EXPECT_THROW(rows.ask(more, more), InternalError);
  });
}

}  // namespace
}  // namespace pkmesh
