// SPDX-License-Identifier: Apache-2.0
// What the tests' NCCL (tests/comm/fake_nccl.cpp) asks of a device. Its operations wait for the other ranks inside the
// device's stream, which is run by its rank's thread: each rank needs a device of its own, and streams must run in the
// default order, the same on all ranks.
#include "tests/comm/async_device.h"
#include "tests/emulated_device/emulated_device.h"

namespace pkmesh {

void on_emulated_stream(void* native, std::function<void()> task) {
  emulated::enqueue(native, std::move(task));
}

void* behind(const void* memory) {
  return const_cast<void*>(memory);
}

}  // namespace pkmesh
