// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

using reference::ThreadScope;

TEST(ParallelFor, VisitsEachIndexOnceInPiecesOfAtLeastAGrain) {
  for (const int threads : {1, 2, 5})
    for (const int64_t count : {0, 1, 7, 64})
      for (const int64_t grain : {0, 1, 10, 100}) {
        const ThreadScope scope(threads);
        std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
        std::atomic<int> pieces = 0;
        parallel_for(3, 3 + count, grain, [&](int64_t from, int64_t to) {
          EXPECT_GE(to - from, std::min(grain, count));
          for (int64_t i = from; i < to; ++i) ++visits[static_cast<size_t>(i - 3)];
          ++pieces;
        });
        EXPECT_LE(pieces, threads);
        for (const std::atomic<int>& visit : visits) EXPECT_EQ(visit, 1);
      }
}

TEST(ParallelFor, ThrowsOnWhatAPieceThrewAfterAllOthers) {
  const ThreadScope scope(4);
  for (int64_t bad = 0; bad < 4; ++bad) {
    std::atomic<int> others = 0;
    EXPECT_THROW(parallel_for(0, 4, 1,
                              [&](int64_t from, int64_t) {
                                if (from == bad || from == 3) throw std::runtime_error("of a piece");
                                ++others;
                              }),
                 std::runtime_error);
    EXPECT_EQ(others, bad == 3 ? 3 : 2);
  }
}

}  // namespace
}  // namespace pkmesh
