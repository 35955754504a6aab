// SPDX-License-Identifier: Apache-2.0
#include "comm/device_communicator.h"

#include <algorithm>
#include <exception>

#include "comm/host_staged.h"
#include "runtime/check.h"

namespace pkmesh {

// Weak for the reason given in runtime/dispatch.h: null unless comm/nccl_cuda.cu was linked.
namespace cuda {
[[gnu::weak]] std::unique_ptr<DeviceCommunicator> make_nccl(Communicator& host, Device device);
}

namespace {

// A rank may hand in nothing and get something, or the other way round, so one span on the device is enough.
bool lie_on_device(std::span<const std::byte> in, std::span<const std::byte> out) {
  const bool device_in = on_device(in.data());
  const bool device_out = on_device(out.data());
  PKM_CHECK(device_in == device_out || in.empty() || out.empty(), "a collective from {} memory to {} memory",
            device_in ? "device" : "host", device_out ? "device" : "host");
  return device_in || device_out;
}

}  // namespace

const char* to_string(DeviceLink link) {
  switch (link) {
    case DeviceLink::kAuto:
      return "auto";
    case DeviceLink::kNccl:
      return "nccl";
    case DeviceLink::kHostStaged:
      return "host staged";
  }
  return "?";
}

DeviceLink resolve(DeviceLink link) {
  if (link == DeviceLink::kAuto) return cuda::make_nccl == nullptr ? DeviceLink::kHostStaged : DeviceLink::kNccl;
  if (link == DeviceLink::kNccl && cuda::make_nccl == nullptr)
    user_error(
        "train.communication=NCCL: this program was built without it; set it to HOST_STAGED, or build the cuda preset");
  return link;
}

std::unique_ptr<Communicator> make_device_communicator(Communicator& host, Device device, DeviceLink link) {
  auto communicator =
      resolve(link) == DeviceLink::kNccl ? cuda::make_nccl(host, device) : make_host_staged(host, device);
  communicator->watch_as_host();
  return communicator;
}

DeviceCommunicator::DeviceCommunicator(Communicator& host)
    : Communicator(host.rank(), host.size(), host.hosts()), host_(host) {
  host.on_top_.push_back(this);
  book_ = host.book_;
  show_on(host.board_);
  calls_ = host.calls_;
  const auto limit = host.watch_limit_;
  host.watch(Clock::duration::zero());
  host.watch_limit_ = limit;
}

DeviceCommunicator::~DeviceCommunicator() {
  std::erase(host_.on_top_, this);
  host_.calls_ = std::max(host_.calls_, calls_);
  host_.watch(host_.watch_limit_);
}

void DeviceCommunicator::abort(int exit_code) {
  host_.abort(exit_code);
  std::terminate();  // not reached
}

void DeviceCommunicator::run_all_reduce(const Reduce& reduce) {
  if (!on_device(reduce.data.data())) return host_.run_all_reduce(reduce);
  device_all_reduce(reduce).wait();
}

Pending DeviceCommunicator::start_all_reduce(const Reduce& reduce) {
  return on_device(reduce.data.data()) ? device_all_reduce(reduce) : host_.start_all_reduce(reduce);
}

void DeviceCommunicator::run_all_gather(std::span<const std::byte> in, std::span<std::byte> out) {
  if (!lie_on_device(in, out)) return host_.run_all_gather(in, out);
  device_all_gather(in, out).wait();
}

Pending DeviceCommunicator::start_all_to_all_v(const Blocks& blocks) {
  return lie_on_device(blocks.in, blocks.out) ? device_all_to_all_v(blocks) : host_.start_all_to_all_v(blocks);
}

void DeviceCommunicator::run_broadcast(std::span<std::byte> data, int root) {
  if (!on_device(data.data())) return host_.run_broadcast(data, root);
  device_broadcast(data, root).wait();
}

}  // namespace pkmesh
