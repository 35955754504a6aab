// SPDX-License-Identifier: Apache-2.0
// How ranks on emulated devices talk to each other: over pinned memory, and over the tests' NCCL where it was compiled.
#pragma once

#include <string>
#include <vector>

#include "comm/device_communicator.h"

namespace pkmesh::emulated {

inline std::vector<DeviceLink> links() {
  std::vector<DeviceLink> links = {DeviceLink::kHostStaged};
  if (resolve(DeviceLink::kAuto) == DeviceLink::kNccl) links.push_back(DeviceLink::kNccl);
  return links;
}

inline std::string setting(DeviceLink link) {
  return link == DeviceLink::kNccl ? "train.communication=NCCL" : "train.communication=HOST_STAGED";
}

}  // namespace pkmesh::emulated
