// SPDX-License-Identifier: Apache-2.0
// Memory of this process and its machine, as the kernel counts it, in bytes; zero where it does not say.
#pragma once

#include <cstdint>
#include <string_view>

namespace pkmesh {

struct ProcessMemory {
  int64_t resident = 0;
  int64_t peak = 0;  // most that was resident so far
  int64_t machine_total = 0;
  int64_t machine_available = 0;  // without swapping
};
ProcessMemory process_memory();
// The number of kibibytes behind "key:" in the style of /proc/self/status, in bytes; zero if it is not there.
int64_t proc_bytes(std::string_view text, std::string_view key);

}  // namespace pkmesh
