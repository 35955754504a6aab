// SPDX-License-Identifier: Apache-2.0
// What ranks that compute on GPUs do together. Such a communicator stands on the one that the ranks have on their hosts
// (Mpi; Thread or Self in tests): host spans go there, device spans by the kind's own way.
//
//   Nccl        from GPU to GPU; each rank needs a GPU of its own
//   HostStaged  through pinned host memory and the host's communicator: several ranks may share a GPU
//
// Costs are entered in the host's ledger, waits are shown on its status board, and the watchdog is that of the
// device's.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace pkmesh {

enum class DeviceLink { kAuto, kNccl, kHostStaged };  // kAuto: Nccl where it was compiled in
const char* to_string(DeviceLink link);               // "nccl", ...

// What kAuto stands for in this program; other kinds are themselves. Throws UserError if Nccl was not compiled in.
DeviceLink resolve(DeviceLink link);

// Collective. `host` must outlive it, and have no collective pending. `device` is this rank's GPU.
std::unique_ptr<Communicator> make_device_communicator(Communicator& host, Device device, DeviceLink link);

// The base of both kinds. Spans were checked: all of a call lie on the device.
class DeviceCommunicator : public Communicator {
 public:
  explicit DeviceCommunicator(Communicator& host);
  ~DeviceCommunicator() override;
  [[noreturn]] void abort(int exit_code) override;
  void watch_as_host() { watch(host_.watch_limit_); }  // with the limit that the host's communicator had

 protected:
  // Each begins behind what is queued on stream(); what is queued there after wait() sees the result.
  virtual Pending device_all_reduce(const Reduce& reduce) = 0;
  virtual Pending device_all_gather(std::span<const std::byte> in, std::span<std::byte> out) = 0;
  virtual Pending device_all_to_all_v(const Blocks& blocks) = 0;
  virtual Pending device_broadcast(std::span<std::byte> data, int root) = 0;

  void on_hang(const std::string& report) override { host_.on_hang(report); }
  std::unique_ptr<Communicator> twin() final { return twin_of(host_); }

  // The core of a communicator that a kind stands on.
  static std::unique_ptr<Communicator> twin_of(Communicator& ranks) { return ranks.twin(); }
  static void run_all_reduce_of(Communicator& ranks, const Reduce& reduce) { ranks.run_all_reduce(reduce); }
  static Pending start_all_reduce_of(Communicator& ranks, const Reduce& reduce) {
    return ranks.start_all_reduce(reduce);
  }
  static double crossed_by_started_of(const Communicator& ranks, const Reduce& reduce) {
    return ranks.crossed_by_started(reduce);
  }
  static void run_all_gather_of(Communicator& ranks, std::span<const std::byte> in, std::span<std::byte> out) {
    ranks.run_all_gather(in, out);
  }
  static Pending start_all_to_all_v_of(Communicator& ranks, const Blocks& blocks) {
    return ranks.start_all_to_all_v(blocks);
  }
  static void run_broadcast_of(Communicator& ranks, std::span<std::byte> data, int root) {
    ranks.run_broadcast(data, root);
  }

  Communicator& host_;

 private:
  void run_all_reduce(const Reduce& reduce) final;
  Pending start_all_reduce(const Reduce& reduce) final;
  void run_all_gather(std::span<const std::byte> in, std::span<std::byte> out) final;
  Pending start_all_to_all_v(const Blocks& blocks) final;
  void run_broadcast(std::span<std::byte> data, int root) final;
  void run_barrier() final { host_.run_barrier(); }
  bool takes_device_memory() const final { return true; }
};

}  // namespace pkmesh
