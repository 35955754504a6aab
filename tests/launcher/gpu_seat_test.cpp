// SPDX-License-Identifier: Apache-2.0
// Which rank gets which GPU, by what the ranks of a host see.
#include "launcher/gpu_seat.h"

#include <gtest/gtest.h>

#include "comm/thread.h"
#include "tests/launcher/tiny_run.h"

namespace pkmesh {
namespace {

using Seen = std::vector<std::vector<int>>;  // by each rank: numbers of the machines' GPUs

// "rank's GPU of the machine: lower ranks on it / ranks on it", for all ranks.
std::string seats(const Hosts& hosts, const Seen& seen) {
  std::vector<std::vector<GpuIdentity>> identities;
  for (const auto& gpus : seen) {
    identities.emplace_back();
    for (const int gpu : gpus) identities.back().push_back({static_cast<std::byte>(gpu)});
  }
  std::string text;
  for (size_t rank = 0; rank < seen.size(); ++rank) {
    const GpuSeat seat = seat_of(static_cast<int>(rank), hosts, identities);
    EXPECT_EQ(seat.gpus, std::ssize(seen[rank]));
    const int gpu = seen[rank].empty() ? -1 : seen[rank].at(static_cast<size_t>(seat.index));
    text += std::to_string(gpu) + ":" + std::to_string(seat.before) + "/" + std::to_string(seat.ranks) + " ";
  }
  return text;
}

TEST(GpuSeat, RanksThatSeeTheSameTakeTurns) {
  EXPECT_EQ(seats(Hosts::one(2), {{0, 1, 2}, {0, 1, 2}}), "0:0/1 1:0/1 ");
  EXPECT_EQ(seats(Hosts::one(3), {{0, 1}, {0, 1}, {0, 1}}), "0:0/2 1:0/1 0:1/2 ");
  EXPECT_EQ(seats(Hosts::even(4, 2), {{0, 1}, {0, 1}, {2, 3}, {2, 3}}), "0:0/1 1:0/1 2:0/1 3:0/1 ");
}

TEST(GpuSeat, RanksThatSeeOneEachHaveIt) {
  EXPECT_EQ(seats(Hosts::one(3), {{5}, {6}, {7}}), "5:0/1 6:0/1 7:0/1 ");
  EXPECT_EQ(seats(Hosts::one(2), {{5}, {5}}), "5:0/2 5:1/2 ") << "the same one";
}

TEST(GpuSeat, RanksThatSeeOthersTakeTheirFirst) {
  EXPECT_EQ(seats(Hosts::one(2), {{0, 1}, {2, 3}}), "0:0/1 2:0/1 ");
  EXPECT_EQ(seats(Hosts::one(2), {{0, 1}, {1, 0}}), "0:0/1 1:0/1 ");
  EXPECT_EQ(seats(Hosts::one(4), {{0, 1}, {0, 1}, {2, 3}, {2, 3}}), "0:0/1 1:0/1 2:0/1 3:0/1 ");
  EXPECT_EQ(seats(Hosts::one(2), {{0, 1}, {0}}), "0:0/2 0:1/2 ");
}

TEST(GpuSeat, OnCpusThereIsNone) {
  for (const int ranks : {1, 2})
    run_ranks(ranks, [](Communicator& world) { EXPECT_EQ(find_gpu_seat(tiny::config(), world).gpus, 0); });
}

TEST(GpuSeat, RanksWithoutAGpuAreInNobodysWay) {
  EXPECT_EQ(seats(Hosts::one(3), {{}, {4}, {}}), "-1:0/1 4:0/1 -1:0/1 ");
}

}  // namespace
}  // namespace pkmesh
