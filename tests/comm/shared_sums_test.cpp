// SPDX-License-Identifier: Apache-2.0
// Ranks are threads, windows plain memory: what processes share, without MPI (comm_mpi_test has it with).
#include "comm/shared_sums.h"

#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <thread>

#include "runtime/check.h"
#include "runtime/random.h"

namespace pkmesh {
namespace {

using Window = SharedSums::Window;

// Runs body(rank, sums) on every rank.
void on_shared(int ranks, const std::function<void(int rank, SharedSums& sums)>& body) {
  std::vector<std::unique_ptr<Window>> memory;
  std::vector<Window*> windows;
  for (int r = 0; r < ranks; ++r) windows.push_back(memory.emplace_back(std::make_unique<Window>()).get());
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] {
      SharedSums sums(r, windows, [] { std::this_thread::yield(); });
      body(r, sums);
    });
  for (std::thread& thread : threads) thread.join();
}

std::vector<float> numbers(int rank, int64_t count, uint64_t step) {
  std::vector<float> values(static_cast<size_t>(count));
  const Random random(5, "shared sums", static_cast<uint64_t>(rank) + 100 * step);
  for (size_t i = 0; i < values.size(); ++i) values[i] = random.uniform(i) - 0.5F;
  return values;
}

TEST(Share, PartsCoverEverythingInRankOrder) {
  for (const int64_t count : {0, 1, 4096, 4097, 50000, 1000003}) {
    for (const int size : {1, 2, 3, 4, 7}) {
      int64_t done = 0;
      for (int rank = 0; rank < size; ++rank) {
        const Share share = share_of(count, rank, size);
        EXPECT_EQ(share.begin, done);
        EXPECT_GE(share.count(), 0);
        done = share.end;
      }
      EXPECT_EQ(done, count);
    }
  }
}

TEST(Share, PartOfAnotherRange) {
  const Share share{10, 20};
  const auto part = [&](int64_t begin, int64_t end) {
    const Share p = share.part_of({begin, end});
    return std::pair(p.begin, p.end);
  };
  EXPECT_EQ(part(12, 15), std::pair(int64_t{12}, int64_t{15}));
  EXPECT_EQ(part(0, 15), std::pair(int64_t{10}, int64_t{15}));
  EXPECT_EQ(part(12, 99), std::pair(int64_t{12}, int64_t{20}));
  EXPECT_EQ(share.part_of({0, 5}).count(), 0);
  EXPECT_EQ(share.part_of({25, 30}).count(), 0);
}

// Sums in the order of the ranks, to the last bit; sizes from nothing to several rounds of both windows.
TEST(SharedSums, SharesAreSummedInRankOrderAndTheRestStays) {
  for (const int ranks : {1, 2, 3, 5}) {
    on_shared(ranks, [ranks](int rank, SharedSums& sums) {
      uint64_t step = 0;
      for (const int64_t count : {0, 1, 4096, 4097, 50000, 300001}) {
        ++step;
        std::vector<float> data = numbers(rank, count, step);
        std::vector<float> expected = data;
        const Share mine = share_of(count, rank, ranks);
        for (int64_t i = mine.begin; i < mine.end; ++i) expected[static_cast<size_t>(i)] = 0;
        for (int r = 0; r < ranks; ++r) {
          const std::vector<float> part = numbers(r, count, step);
          for (auto i = static_cast<size_t>(mine.begin); i < static_cast<size_t>(mine.end); ++i) expected[i] += part[i];
        }
        sums.sum(data);
        EXPECT_EQ(data, expected) << count << " on rank " << rank << " of " << ranks;
      }
    });
  }
}

TEST(SharedSums, GatheredSharesAreEveryones) {
  for (const int ranks : {1, 2, 3, 5}) {
    on_shared(ranks, [ranks](int rank, SharedSums& sums) {
      uint64_t step = 0;
      for (const int64_t count : {0, 1, 4096, 4097, 50000, 300001}) {
        const std::vector<float> expected = numbers(0, count, ++step);
        std::vector<float> data(expected.size(), std::numeric_limits<float>::quiet_NaN());
        const Share mine = share_of(count, rank, ranks);
        std::copy(expected.begin() + mine.begin, expected.begin() + mine.end, data.begin() + mine.begin);
        sums.gather(data);
        EXPECT_EQ(data, expected) << count << " on rank " << rank << " of " << ranks;
      }
    });
  }
}

// Ranks that run ahead of each other by turns overwrite nothing that is still to be read.
TEST(SharedSums, NoRankOvertakesAnother) {
  constexpr int kRanks = 3;
  on_shared(kRanks, [](int rank, SharedSums& sums) {
    std::vector<float> data(40000);
    for (int step = 0; step < 60; ++step) {
      if (step % kRanks == rank) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::fill(data.begin(), data.end(), static_cast<float>(step + rank));
      sums.sum(data);
      sums.gather(data);
      EXPECT_EQ(data, std::vector<float>(data.size(), static_cast<float>(3 * step + 3))) << "step " << step;
    }
  });
}

TEST(SharedSums, SizesThatDifferAreAnError) {
  on_shared(2, [](int rank, SharedSums& sums) {
    std::vector<float> data(static_cast<size_t>(9000 + rank));
    EXPECT_THROW(sums.sum(data), InternalError);
  });
}

TEST(SharedSums, RefusesARankThatIsNotThere) {
  Window window{};
  EXPECT_THROW(SharedSums(1, {&window}, [] {}), InternalError);
  EXPECT_THROW(SharedSums(0, std::vector<Window*>(SharedSums::kMostRanks + 1, &window), [] {}), InternalError);
}

}  // namespace
}  // namespace pkmesh
