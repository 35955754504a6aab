// SPDX-License-Identifier: Apache-2.0
// A world of one: collectives are copies.
#pragma once

#include "comm/communicator.h"

namespace pkmesh {

class SelfCommunicator final : public Communicator {
 public:
  SelfCommunicator() : Communicator(0, 1, Hosts::one(1)) {}
  ~SelfCommunicator() override { stop_watching(); }
  [[noreturn]] void abort(int exit_code) override;  // ends the process

 protected:
  void run_all_reduce(const Reduce&) override {}
  Pending start_all_reduce(const Reduce&) override { return {}; }
  void run_all_gather(std::span<const std::byte> in, std::span<std::byte> out) override;
  Pending start_all_to_all_v(const Blocks& blocks) override;
  void run_broadcast(std::span<std::byte>, int) override {}
  void run_barrier() override {}
  bool takes_device_memory() const override { return true; }
  std::unique_ptr<Communicator> twin() override { return std::make_unique<SelfCommunicator>(); }
  void on_hang(const std::string& report) override;

 private:
  void copy(std::span<const std::byte> in, std::span<std::byte> out) const;
};

}  // namespace pkmesh
