// SPDX-License-Identifier: Apache-2.0
// The contract on the memory of an emulated device, for ranks as threads; and what is particular to device memory.
#include <array>
#include <atomic>

#include "async_device.h"
#include "comm/device_communicator.h"
#include "comm/host_staged.h"
#include "comm/self.h"
#include "comm/thread.h"
#include "contract.h"
#include "runtime/buffer.h"
#include "runtime/check.h"
#include "through_device.h"

namespace pkmesh {
namespace {

constexpr Device kDevice{DeviceKind::kCuda, 0};

std::function<void(const RankBody&)> staged_over_threads(int ranks, const HostStagedOptions& options) {
  return [ranks, options](const RankBody& body) {
    run_ranks(ranks, [&](Communicator& host) {
      ThroughDevice world(make_host_staged(host, kDevice, options), kDevice);
      body(world);
    });
  };
}

}  // namespace

std::vector<ContractWorld> contract_worlds() {
  std::vector<ContractWorld> worlds = {{"HostStagedOverSelf", [](const RankBody& body) {
                                          SelfCommunicator host;
                                          ThroughDevice world(make_host_staged(host, kDevice), kDevice);
                                          body(world);
                                        }}};
  for (int ranks = 1; ranks <= 4; ++ranks)
    worlds.push_back({"HostStaged" + std::to_string(ranks), staged_over_threads(ranks, {})});
  worlds.push_back({"HostStaged3InPieces", staged_over_threads(3, {.slot_bytes = 100, .slots = 3})});
  worlds.push_back({"HostStaged2InOneSlot", staged_over_threads(2, {.slot_bytes = 1000, .slots = 1})});
  for (int ranks = 1; ranks <= 4 && resolve(DeviceLink::kAuto) == DeviceLink::kNccl; ++ranks)
    worlds.push_back({"Nccl" + std::to_string(ranks), [ranks](const RankBody& body) {
                        run_ranks(ranks, [&](Communicator& host) {
                          ThroughDevice world(make_device_communicator(host, kDevice, DeviceLink::kNccl), kDevice);
                          body(world);
                        });
                      }});
  return worlds;
}

namespace {

TEST(DeviceCommunicator, HostSpansGoOverTheHost) {
  run_ranks(3, [](Communicator& host) {
    const auto world = make_device_communicator(host, kDevice, DeviceLink::kHostStaged);
    std::vector<int64_t> sum = {world->rank()};
    world->all_reduce(std::span(sum), Reduction::kSum, Purpose::kGate);  // no stream is in use
    EXPECT_EQ(sum[0], 3);
    std::vector<int32_t> all(3);
    const std::vector<int32_t> mine = {world->rank()};
    world->all_gather(mine, std::span(all), Purpose::kControl);
    EXPECT_EQ(all, (std::vector<int32_t>{0, 1, 2}));
    EXPECT_EQ(world->ledger()[Purpose::kGate].calls, 1);
  });
}

TEST(DeviceCommunicator, OneCallTakesOneSide) {
  run_ranks(2, [](Communicator& host) {
    const auto world = make_device_communicator(host, kDevice, DeviceLink::kHostStaged);
    Stream stream(kDevice);
    world->use(stream);
    const Buffer<float> there(kDevice, 4);
    std::vector<float> here(8);
    EXPECT_THROW(world->all_gather<float>(there.span(), std::span(here), Purpose::kDense), InternalError);
    EXPECT_THROW(host.all_reduce(there.span(), Reduction::kSum, Purpose::kDense), InternalError);
  });
}

// Buckets leave one by one behind kernels that take their time, an all-to-all-v in between: what the host does next is
// not waited for, and all ranks' exchanges match.
TEST(HostStaged, PendingReductionsAndExchangesKeepTheirOrder) {
  run_ranks(3, [](Communicator& host) {
    const auto world = make_host_staged(host, kDevice, {.slot_bytes = 256, .slots = 2});
    Stream stream(kDevice);
    world->use(stream);
    const int64_t n = 500;
    const Buffer<float> gradients(kDevice, 4 * n);
    for (int bucket = 0; bucket < 4; ++bucket) {
      auto* const data = static_cast<float*>(behind(gradients.data())) + bucket * n;
      std::vector<Pending> pending;
      on_emulated_stream(stream.native(), [=, rank = host.rank()] {
        std::this_thread::sleep_for(std::chrono::milliseconds(rank));
        for (int64_t i = 0; i < n; ++i) data[i] = whole<float>(rank, i + bucket);
      });
    }
    std::vector<Pending> pending;
    for (int bucket = 3; bucket >= 0; --bucket)
      pending.push_back(
          world->all_reduce_async(gradients.span().subspan(static_cast<size_t>(bucket * n), static_cast<size_t>(n)),
                                  Reduction::kSum, Purpose::kDense));
    const std::vector<int64_t> one = {1, 1, 1};
    const Buffer<int32_t> out(kDevice, 3);
    const Buffer<int32_t> in(kDevice, 3);
    on_emulated_stream(stream.native(), [p = static_cast<int32_t*>(behind(out.data())), rank = host.rank()] {
      for (int i = 0; i < 3; ++i) p[i] = rank * 10 + i;
    });
    world->all_to_all_v<int32_t>(out.span(), one, in.span(), one, Purpose::kPartials);
    for (Pending& p : pending) p.wait();
    stream.synchronize();
    for (int i = 0; i < 3; ++i) EXPECT_EQ(static_cast<int32_t*>(behind(in.data()))[i], i * 10 + host.rank());
    for (int64_t i = 0; i < 4 * n; ++i) {
      float sum = 0;
      for (int r = 0; r < 3; ++r) sum += whole<float>(r, i % n + i / n);
      if (static_cast<float*>(behind(gradients.data()))[i] != sum) {
        ADD_FAILURE() << "at " << i;
        break;
      }
    }
  });
}

TEST(HostStaged, ComputingIsNotWaiting) {
  run_ranks(2, [](Communicator& host) {
    const auto world = make_host_staged(host, kDevice);
    Stream stream(kDevice);
    world->use(stream);
    const Buffer<float> data(kDevice, 16);
    on_emulated_stream(stream.native(), [] { std::this_thread::sleep_for(std::chrono::milliseconds(300)); });
    world->all_reduce(data.span(), Reduction::kSum, Purpose::kDense);
    EXPECT_LT(world->ledger()[Purpose::kDense].seconds, 0.2);
    stream.synchronize();
  });
}

TEST(HostStaged, AnErrorOfOneRankEndsAll) {
  EXPECT_THROW(run_ranks(3,
                         [](Communicator& host) {
                           const Buffer<float> data(kDevice, 16);
                           Stream stream(kDevice);
                           const auto world = make_host_staged(host, kDevice);
                           world->use(stream);
                           if (world->rank() == 1) user_error("rank 1 has had enough");
                           world->all_reduce(data.span(), Reduction::kSum, Purpose::kDense);
                         }),
               UserError);
}

TEST(HostStaged, AFaultOfTheDeviceIsNamed) {
  EXPECT_THROW(
      {
        SelfCommunicator host;
        const auto world = make_host_staged(host, kDevice);  // waits for its copies when it goes
        Stream stream(kDevice);
        let_device_fail(true);
        stream.synchronize();
      },
      InternalError);
  let_device_fail(false);
}

// The watchdog's thread asks NCCL how it is while the rank's own thread is in NCCL nearly all the time. The tests' NCCL
// takes one thread at a time.
TEST(Nccl, TheWatchdogLooksBetweenCalls) {
  if (resolve(DeviceLink::kAuto) != DeviceLink::kNccl) GTEST_SKIP() << "NOT TESTED: built without nccl.h";
  run_ranks(2, [](Communicator& host) {
    const auto world = make_device_communicator(host, kDevice, DeviceLink::kNccl);
    Stream stream(kDevice);
    world->use(stream);
    const Buffer<float> data(kDevice, 16);
    world->watch(std::chrono::seconds(4));  // looks every half second
    const auto begin = Clock::now();
    for (int32_t goes_on = 1; goes_on != 0;) {
      for (int i = 0; i < 20; ++i) world->all_reduce(data.span(), Reduction::kSum, Purpose::kPartials);
      goes_on = Clock::now() - begin < std::chrono::milliseconds(2600) ? 1 : 0;
      world->all_reduce(std::span(&goes_on, 1), Reduction::kMin, Purpose::kControl);
    }
    stream.synchronize();
  });
}

// A kernel's fault shows in whatever is called next, on any thread: here the watchdog's.
TEST(Nccl, AFaultOfTheDeviceIsNamedAndEndsTheJob) {
  if (resolve(DeviceLink::kAuto) != DeviceLink::kNccl) GTEST_SKIP() << "NOT TESTED: built without nccl.h";
  std::atomic<bool> ended{false};
  std::string error;
  const std::array data = {Buffer<float>(kDevice, 16), Buffer<float>(kDevice, 16)};  // outlives what is under way
  try {
    run_ranks(2, [&](Communicator& host) {
      const auto world = make_device_communicator(host, kDevice, DeviceLink::kNccl);
      Stream stream(kDevice);
      world->use(stream);
      const auto mine = data.at(static_cast<size_t>(world->rank())).span();
      world->all_reduce(mine, Reduction::kSum, Purpose::kDense);  // under way until somebody asks
      world->barrier();
      world->watch(std::chrono::seconds(8));  // looks every second
      while (world->rank() == 1 && !ended) std::this_thread::yield();
      let_device_fail(true);
      try {
        world->barrier();
      } catch (const JobAborted&) {
        ended = true;
        throw;
      }
    });
  } catch (const InternalError& caught) {
    error = caught.what();
  }
  let_device_fail(false);
  EXPECT_NE(error.find("the GPU of rank"), std::string::npos) << error;
  EXPECT_NE(error.find(fmt::format("({}): a kernel's fault", this_host())), std::string::npos) << error;
}

}  // namespace
}  // namespace pkmesh
