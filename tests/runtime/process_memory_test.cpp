// SPDX-License-Identifier: Apache-2.0
#include "runtime/process_memory.h"

#include <gtest/gtest.h>

#include <vector>

namespace pkmesh {
namespace {

TEST(ProcessMemory, ReadsWhatTheKernelSays) {
  EXPECT_EQ(proc_bytes("VmPeak:\t  9 kB\nVmRSS:\t  123 kB\n", "VmRSS"), 123 * 1024);
  EXPECT_EQ(proc_bytes("XVmRSS: 1 kB\nVmRSS", "VmRSS"), 0);
  const ProcessMemory before = process_memory();
  EXPECT_GT(before.resident, 0);
  EXPECT_GE(before.peak, before.resident);
  EXPECT_GT(before.machine_total, before.peak);
  EXPECT_GT(before.machine_available, 0);
  EXPECT_LT(before.machine_available, before.machine_total);
  constexpr size_t kMore = size_t{64} << 20;
  const std::vector<char> more(kMore, 1);
  EXPECT_GE(process_memory().resident, before.resident + static_cast<int64_t>(kMore) / 2) << more[7];
}

}  // namespace
}  // namespace pkmesh
