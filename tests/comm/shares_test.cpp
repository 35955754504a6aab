// SPDX-License-Identifier: Apache-2.0
// The contract's part on work that ranks share: which elements each looks after, their sums, what becomes of them.
#include <array>

#include "contract.h"

namespace pkmesh {
namespace {

TEST_P(ContractTest, SharesAreEverythingOnceWhereRanksShareWork) {
  on_ranks([](Communicator& world) {
    for (const int64_t count : {0, 1, 333, 4097, 100003}) {
      std::vector<int> owners(static_cast<size_t>(count));
      for (int rank = 0; rank < world.size(); ++rank) {
        int64_t done = 0;
        for (const Share& share : world.shares(count, rank)) {
          EXPECT_LE(done, share.begin);
          EXPECT_LE(share.begin, share.end);
          done = share.end;
          for (int& owner : share.of(std::span(owners))) ++owner;
        }
        EXPECT_LE(done, count);
      }
      EXPECT_EQ(owners, std::vector<int>(owners.size(), world.shares_work() ? 1 : world.size()));
    }
  });
}

TEST_P(ContractTest, SharesOfASumAreEveryonesOnceGathered) {
  on_ranks([](Communicator& world) {
    for (const int64_t count : {0, 1, 333, 4097, 100003}) {
      auto data = numbers<float>(world.rank(), count);
      const auto sums = expected_reduction<float>(world.size(), count, Reduction::kSum);
      world.sum_shares_async(data, Wire::kExact, Purpose::kDense).wait();
      const auto mine = world.shares(count, world.rank());
      for (const Share& share : mine)
        for (auto i = static_cast<size_t>(share.begin); i < static_cast<size_t>(share.end); ++i)
          EXPECT_EQ(data[i], sums[i]) << i << " of " << count;
      spoil_but(mine, data);
      world.gather_shares_async(data, Purpose::kDense).wait();
      EXPECT_EQ(data, sums) << count;
    }
  });
}

// Two steps of each at once, begun in one order and waited for in another.
TEST_P(ContractTest, SharesOfSeveralSumsAreUnderWayAtOnce) {
  on_ranks([](Communicator& world) {
    std::array<std::vector<float>, 2> data = {numbers<float>(world.rank(), 5000), numbers<float>(world.rank(), 77)};
    std::array<Pending, 2> pending;
    for (size_t i = 0; i < 2; ++i) pending[i] = world.sum_shares_async(data[i], Wire::kExact, Purpose::kDense);
    world.barrier();
    for (const size_t i : {1, 0}) pending[i].wait();
    for (size_t i = 0; i < 2; ++i) {
      spoil_but(world.shares(std::ssize(data[i]), world.rank()), data[i]);
      pending[i] = world.gather_shares_async(data[i], Purpose::kDense);
    }
    for (const size_t i : {1, 0}) pending[i].wait();
    for (const auto& one : data)
      EXPECT_EQ(one, expected_reduction<float>(world.size(), std::ssize(one), Reduction::kSum));
  });
}

}  // namespace
}  // namespace pkmesh
