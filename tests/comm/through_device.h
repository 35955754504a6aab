// SPDX-License-Identifier: Apache-2.0
// The contract suite on device memory: a communicator for host spans that takes each call to the device communicator
// under test, with buffers of its own on the device, copied in and out in the order of one stream. The host never waits
// between a copy and the collective that needs it. Guard bytes stand behind every buffer.
#pragma once

#include "comm/device_communicator.h"

namespace pkmesh {

class ThroughDevice final : public Communicator {
 public:
  ThroughDevice(std::shared_ptr<Communicator> tested, Device device);
  ~ThroughDevice() override;  // expects that the tested communicator entered in its ledger what this one did
  [[noreturn]] void abort(int exit_code) override;

 protected:
  void run_all_reduce(const Reduce& reduce) override;
  Pending start_all_reduce(const Reduce& reduce) override;
  void run_all_gather(std::span<const std::byte> in, std::span<std::byte> out) override;
  Pending start_all_to_all_v(const Blocks& blocks) override;
  void run_broadcast(std::span<std::byte> data, int root) override;
  void run_barrier() override { tested_->barrier(); }
  std::unique_ptr<Communicator> twin() override { return nullptr; }
  void on_hang(const std::string&) override {}

 private:
  const Device device_;
  Stream stream_;
  const std::shared_ptr<Communicator> tested_;
  const Ledger before_;
};

}  // namespace pkmesh
