// SPDX-License-Identifier: Apache-2.0
// Memory of this process and its machine, as the kernel counts it, in bytes; zero where it does not say. Of a machine a
// process has what its control groups let it have (containers, jobs of a scheduler).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace pkmesh {

struct ProcessMemory {
  int64_t resident = 0;
  int64_t peak = 0;                // most that was resident so far
  int64_t machine_total = 0;       // of it what this process may have
  int64_t machine_available = 0;   // without swapping
  int64_t address_space_left = 0;  // under `ulimit -v`; without one more than there can be
};
ProcessMemory process_memory();
// The least limit of the control groups that `groups`, the text of /proc/self/cgroup, names, of version 1 or 2, mounted
// at `root`; of their parents, too. Nothing if there is none.
std::optional<int64_t> cgroup_limit(std::string_view groups, const std::string& root = "/sys/fs/cgroup");
// The number of kibibytes behind "key:" in the style of /proc/self/status, in bytes; zero if it is not there.
int64_t proc_bytes(std::string_view text, std::string_view key);

}  // namespace pkmesh
