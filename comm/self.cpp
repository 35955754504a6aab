// SPDX-License-Identifier: Apache-2.0
#include "comm/self.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime/check.h"
#include "runtime/log.h"

namespace pkmesh {

void SelfCommunicator::copy(std::span<const std::byte> in, std::span<std::byte> out) const {
  if (in.empty()) return;
  if (on_device(in.data())) return pkmesh::copy(*stream(), in, out);
  std::memcpy(out.data(), in.data(), in.size());
}

void SelfCommunicator::run_all_gather(std::span<const std::byte> in, std::span<std::byte> out) {
  copy(in, out);
}

Pending SelfCommunicator::start_all_to_all_v(const Blocks& blocks) {
  PKM_CHECK(blocks.in.size() == blocks.out.size(), "all_to_all_v: rank 0 sends itself {} elements and expects {}",
            blocks.in_counts[0], blocks.out_counts[0]);
  copy(blocks.in, blocks.out);
  return {};
}

void SelfCommunicator::abort(int exit_code) {
  std::fflush(nullptr);
  std::_Exit(exit_code);
}

void SelfCommunicator::on_hang(const std::string& report) {
  log_error("pkmesh: " + report);
  abort(1);
}

}  // namespace pkmesh
