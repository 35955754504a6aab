// SPDX-License-Identifier: Apache-2.0
// Device memory over a host's communicator: for ranks that share a GPU and machines without NCCL.
//
// An operation is cut into chunks. Each goes from the device to a slot of pinned memory, over the ranks, and back, in
// the order of the calls: the ranks' exchanges match whatever the timing. Copies of one chunk run beside the exchange
// of another, and what is staged at once is bounded by the slots.
#pragma once

#include "comm/device_communicator.h"

namespace pkmesh {

struct HostStagedOptions {
  int64_t slot_bytes = int64_t{4} << 20;  // of each direction; at least 8 per rank. A test lowers it
  int slots = 3;
  int64_t bytes() const { return 2 * slots * slot_bytes; }  // pinned, of a rank
};

// Collective; see make_device_communicator.
std::unique_ptr<DeviceCommunicator> make_host_staged(Communicator& host, Device device,
                                                     const HostStagedOptions& options = {});

}  // namespace pkmesh
