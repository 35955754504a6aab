// SPDX-License-Identifier: Apache-2.0
// Memory of the device for a kernel's or a library's intermediate results: garbage at first, fenced, and gone as soon
// as the last owner is; nobody waits for that, as cudaFree() would.
#pragma once

#include <cstddef>
#include <memory>

namespace emulation {

std::shared_ptr<std::byte> fenced(size_t bytes);

}  // namespace emulation
