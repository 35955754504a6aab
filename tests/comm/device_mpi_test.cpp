// SPDX-License-Identifier: Apache-2.0
// The contract on device memory, over processes: on a GPU where the program has CUDA, else on the asynchronous device.
#include <cstdlib>

#include "comm/host_staged.h"
#include "contract.h"
#include "mpi_main.h"
#include "runtime/bf16.h"
#include "runtime/buffer.h"
#include "through_device.h"

namespace pkmesh {
namespace {

// This rank's GPU: the ranks of a host share its GPUs if there are fewer.
Device device_of(const Communicator& world) {
  const auto& hosts = world.hosts().of_rank;
  const auto me = hosts.begin() + world.rank();
  const auto before = static_cast<int>(std::count(hosts.begin(), me, *me));
  const int gpus = device_count(DeviceKind::kCuda);
  // NCCL refuses two ranks on one GPU unless it takes them for two hosts; then they talk over sockets.
  if (std::count(hosts.begin(), hosts.end(), *me) > gpus) {
    setenv("NCCL_HOSTID", ("rank" + std::to_string(world.rank())).c_str(), 0);
    setenv("NCCL_NET", "Socket", 0);
    setenv("NCCL_SOCKET_IFNAME", "=lo", 0);
  }
  return {DeviceKind::kCuda, before % gpus};
}

// Communicators that take a second to make: made once, for all tests. They go before MPI does.
class Kept : public testing::Environment {
 public:
  std::shared_ptr<Communicator> nccl(Device& device) {
    if (nccl_ == nullptr) {
      host_ = test_session().world({.watch = std::chrono::minutes(1)});
      device_ = device_of(*host_);
      nccl_ = make_device_communicator(*host_, device_, DeviceLink::kNccl);
    }
    device = device_;
    return nccl_;
  }
  void TearDown() override {
    nccl_.reset();
    host_.reset();
  }

 private:
  std::unique_ptr<Communicator> host_;
  Device device_;
  std::shared_ptr<Communicator> nccl_;
};

ContractWorld staged(const std::string& name, const HostStagedOptions& options) {
  return {name,
          [options](const RankBody& body) {
            const auto host = test_session().world({.watch = std::chrono::minutes(1)});
            const Device device = device_of(*host);
            ThroughDevice world(make_host_staged(*host, device, options), device);
            body(world);
          },
          true};
}

}  // namespace

std::vector<ContractWorld> contract_worlds() {
  std::vector<ContractWorld> worlds = {staged("HostStaged", {}), staged("HostStagedInPieces", {.slot_bytes = 100})};
  if (resolve(DeviceLink::kAuto) != DeviceLink::kNccl) return worlds;
  static auto* const kept = dynamic_cast<Kept*>(testing::AddGlobalTestEnvironment(new Kept));
  worlds.push_back({"Nccl",
                    [](const RankBody& body) {
                      Device device;
                      const auto nccl = kept->nccl(device);
                      ThroughDevice world(nccl, device);
                      body(world);
                    },
                    true});
  return worlds;
}

// Ranks on hosts of their own, so that all of it crosses.
TEST(HostStagedSums, AreRoundedOnABf16Wire) {
  if (device_count(DeviceKind::kCuda) == 0) {
    const char* required = std::getenv("PKMESH_REQUIRE_GPU");
    if (required != nullptr && std::string(required) == "1") FAIL() << "PKMESH_REQUIRE_GPU=1, but no CUDA device";
    GTEST_SKIP() << "no CUDA device: this was not run";
  }
  const auto host = test_session().world({.ranks_each = 1, .watch = std::chrono::minutes(1)});
  const Device device{DeviceKind::kCuda, 0};
  const auto world = make_host_staged(*host, device, {.slot_bytes = 256});
  Stream stream(device);
  world->use(stream);
  const Buffer<float> data(device, 1000, MemoryKind::kHost);
  const Buffer<float> on_device(device, 1000);
  std::ranges::fill(data.span(), static_cast<float>(world->rank() + 1) / 7.0F);
  copy(stream, data.span(), on_device.span());
  world->sum_async(on_device.span(), Wire::kBf16, Purpose::kDense).wait();
  copy(stream, on_device.span(), data.span());
  stream.synchronize();
  const float exact = static_cast<float>(world->size() * (world->size() + 1)) / 14.0F;
  for (const float sum : data.span()) {
    EXPECT_NEAR(sum, exact, 0x1p-7F * exact);
    EXPECT_EQ(sum == static_cast<float>(bf16(sum)), world->size() > 1) << sum;
  }
  host->barrier();
}

}  // namespace pkmesh
