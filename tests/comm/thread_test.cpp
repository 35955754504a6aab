// SPDX-License-Identifier: Apache-2.0
// The contract for the kinds that need no launcher, and what is particular to ranks as threads.
#include "comm/thread.h"

#include <atomic>

#include "comm/device_communicator.h"
#include "comm/self.h"
#include "contract.h"
#include "runtime/check.h"

namespace pkmesh {

std::vector<ContractWorld> contract_worlds() {
  std::vector<ContractWorld> worlds = {{"Self", [](const RankBody& body) {
                                          SelfCommunicator world;
                                          body(world);
                                        }}};
  for (int ranks = 1; ranks <= 4; ++ranks)
    worlds.push_back({"Thread" + std::to_string(ranks), [ranks](const RankBody& body) { run_ranks(ranks, body); }});
  worlds.push_back({"Thread4On2Hosts", [](const RankBody& body) { run_ranks(4, body, {{0, 0, 1, 1}}); }});
  return worlds;
}

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(ThreadRanks, TheFirstErrorEndsAllRanksAndComesBack) {
  std::atomic<int> aborted{0};
  const auto begin = Clock::now();
  EXPECT_THROW(run_ranks(4,
                         [&](Communicator& world) {
                           world.barrier();
                           if (world.rank() == 2) user_error("rank 2 has had enough");
                           std::vector<float> data(10);
                           try {
                             world.all_reduce(std::span(data), Reduction::kSum, Purpose::kDense);
                           } catch (const JobAborted& error) {
                             EXPECT_TRUE(has(error.what(), "rank 2 has had enough")) << error.what();
                             ++aborted;
                             throw;
                           }
                         }),
               UserError);
  EXPECT_EQ(aborted, 3);
  EXPECT_LT(Clock::now() - begin, seconds(10));
}

TEST(ThreadRanks, APendingCollectiveDoesNotKeepAnErrorBack) {
  EXPECT_THROW(run_ranks(3,
                         [](Communicator& world) {
                           std::vector<float> data(10);
                           auto pending = world.all_reduce_async(std::span(data), Reduction::kSum, Purpose::kDense);
                           if (world.rank() == 0) user_error("stop");
                           world.barrier();
                         }),
               UserError);
}

TEST(ThreadRanks, AbortEndsAllRanksWithItsCode) {
  try {
    run_ranks(3, [](Communicator& world) {
      if (world.rank() == 1) world.abort(7);
      world.barrier();
    });
    ADD_FAILURE() << "returned";
  } catch (const JobAborted& error) {
    EXPECT_EQ(error.exit_code(), 7);
  }
}

TEST(ThreadRanks, ARankThatDoesNotComeIsNamedAfterTheTimeOut) {
  std::atomic<bool> timed_out{false};
  const std::string error = error_of([&] {
    run_ranks(3,
              [&](Communicator& world) {
                while (world.rank() == 1 && !timed_out) std::this_thread::yield();
                try {
                  world.barrier();
                } catch (...) {
                  timed_out = true;
                  throw;
                }
              },
              {{}, milliseconds(100)});
  });
  EXPECT_TRUE(has(error, "barrier: rank 1 did not come")) << error;
}

TEST(ThreadRanks, ARankThatLeavesEarlyIsNamedAtOnce) {
  const std::string error = error_of([] {
    run_ranks(3, [](Communicator& world) {
      if (world.rank() != 1) world.barrier();
    });
  });
  EXPECT_TRUE(has(error, "waits in vain in barrier: rank 1 did not come")) << error;
}

TEST(ThreadRanks, DifferentCollectivesAreAnErrorNotAHang) {
  const std::string error = error_of([] {
    run_ranks(2, [](Communicator& world) {
      std::vector<float> data(static_cast<size_t>(3 + world.rank()));
      world.all_reduce(std::span(data), Reduction::kSum, Purpose::kDense);
    });
  });
  EXPECT_TRUE(has(error, "all_reduce of 3 elements") && has(error, "all_reduce of 4 elements")) << error;
}

TEST(ThreadRanks, CountsThatDisagreeAreAnError) {
  const std::string error = error_of([] {
    run_ranks(2, [](Communicator& world) {
      const std::vector<int64_t> one = {1, 1};
      const std::vector<int64_t> two = {1, 2};
      std::vector<float> in(2);
      std::vector<float> out(world.rank() == 0 ? 3 : 2);
      world.all_to_all_v(in, one, std::span(out), world.rank() == 0 ? two : one, Purpose::kPartials);
    });
  });
  EXPECT_TRUE(has(error, "rank 1 sends 1 elements, rank 0 expects 2")) << error;
}

TEST(ThreadRanks, BytesThatLeaveAHostAreCounted) {
  run_ranks(3,
            [](Communicator& world) {  // ranks 0 and 1 on one host, 2 on another
              std::vector<float> in(30);
              std::vector<float> out(30);
              world.all_to_all(in, std::span(out), Purpose::kPartials);
              EXPECT_EQ(world.ledger()[Purpose::kPartials].crossed, world.rank() == 2 ? 80 : 40);
              world.all_reduce(std::span(in), Reduction::kSum, Purpose::kDense);  // ring: 0 -> 1 -> 2 -> 0
              EXPECT_DOUBLE_EQ(world.ledger()[Purpose::kDense].crossed, world.rank() == 0 ? 0 : 120 * 4.0 / 3.0);
              world.broadcast(std::span(in), 0, Purpose::kGate);  // chain: 0 -> 1 -> 2
              EXPECT_EQ(world.ledger()[Purpose::kGate].crossed, world.rank() == 1 ? 120 : 0);
              EXPECT_EQ(world.hosts().count(), 2);
            },
            {{0, 0, 1}});
}

TEST(Watchdog, NamesTheCollectiveTheLabelAndTheMissingRank) {
  std::atomic<bool> ended{false};
  const std::string error = error_of([&] {
    run_ranks(3, [&](Communicator& world) {
      world.watch(milliseconds(100));
      const Communicator::Label step(world, "step 17");
      const Communicator::Label layer(world, "layer 2");
      world.barrier();
      while (world.rank() == 2 && !ended) std::this_thread::yield();
      std::vector<float> data(4);
      try {
        world.all_reduce(std::span(data), Reduction::kSum, Purpose::kDense);
      } catch (const JobAborted&) {
        ended = true;
        throw;
      }
    });
  });
  EXPECT_TRUE(has(error, "in all_reduce for dense gradients, 16 bytes, call 2 (step 17, layer 2)")) << error;
  EXPECT_TRUE(has(error, "rank 2 is not there: it left barrier")) << error;
  EXPECT_FALSE(has(error, "rank 0 is not there") || has(error, "rank 1 is not there")) << error;
}

TEST(Watchdog, LetsManyShortCallsPass) {
  run_ranks(2, [](Communicator& world) {
    world.watch(milliseconds(80));
    const auto begin = Clock::now();
    while (true) {
      int32_t go_on = Clock::now() - begin < milliseconds(250) ? 1 : 0;
      world.broadcast(std::span(&go_on, 1), 0, Purpose::kControl);
      if (go_on == 0) break;
    }
    world.watch(Clock::duration::zero());
  });
}

// The watchdog's thread says what a device does at any moment, also while the rank enters and leaves calls.
TEST(RankStatus, WhatADeviceDoesIsSeenWhileTheRankIsInsideNoCall) {
  RankStatus status;
  const auto seen = [&] { return std::pair(status.read().inside, status.read().call); };
  const auto show = [&](int64_t call) { status.show_device(call, Collective::kAllReduce, Purpose::kDense, 8); };
  show(2);
  EXPECT_EQ(seen(), std::pair(true, int64_t{2}));
  status.enter(3, Collective::kBarrier, Purpose::kControl, 0);
  EXPECT_EQ(seen(), std::pair(true, int64_t{3}));
  status.clear_device();
  EXPECT_EQ(seen(), std::pair(true, int64_t{3})) << "a hang in call 3 would go unseen";
  show(2);
  EXPECT_EQ(to_string(status.read()), "barrier for control, 0 bytes, call 3");
  status.leave();
  EXPECT_EQ(to_string(status.read()), "all_reduce for dense gradients, 8 bytes, call 2");
  status.clear_device();
  EXPECT_EQ(seen(), std::pair(false, int64_t{3}));
}

TEST(Label, NestsAndIsCutWhenTooLong) {
  RankStatus status;
  EXPECT_EQ(to_string(status.read()), "nothing yet");
  status.enter(3, Collective::kAllToAllV, Purpose::kPartials, 12);
  status.label(std::string(500, 'x'));
  EXPECT_EQ(to_string(status.read()), "all_to_all_v for partials, 12 bytes, call 3 (" + std::string(127, 'x') + ")");
}

TEST(SelfCommunicator, CountsMustAgreeWithItself) {
  SelfCommunicator world;
  std::vector<float> in(1);
  std::vector<float> out(2);
  const std::vector<int64_t> one = {1};
  const std::vector<int64_t> two = {2};
  EXPECT_THROW(world.all_to_all_v(in, one, std::span(out), two, Purpose::kPartials), InternalError);
}

TEST(DeviceCommunicator, WhatWasNotCompiledInSaysSo) {
  if (compiled_with(DeviceKind::kCuda)) GTEST_SKIP() << "this program has CUDA";
  SelfCommunicator host;
  const std::string error = error_of([&] {
    make_device_communicator(host, {DeviceKind::kCuda, 0}, DeviceLink::kNccl);
  });
  EXPECT_TRUE(has(error, "NCCL: this program was built without it")) << error;
  EXPECT_EQ(resolve(DeviceLink::kAuto), DeviceLink::kHostStaged);
}

}  // namespace
}  // namespace pkmesh
