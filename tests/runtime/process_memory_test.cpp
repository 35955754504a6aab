// SPDX-License-Identifier: Apache-2.0
#include "runtime/process_memory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "tests/io/temporary_folder.h"

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

TEST(ProcessMemory, IsLimitedByControlGroups) {
  const TemporaryFolder folder;
  const auto write = [&](const std::string& file, const std::string& text) {
    const std::filesystem::path path = folder / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  };
  write("memory.max", "max\n");
  write("job_1/memory.max", "5000000000\n");
  write("job_1/step/memory.max", "max\n");
  write("memory/job_2/memory.limit_in_bytes", "7000\n");
  write("memory/memory.limit_in_bytes", "9223372036854771712\n");
  const auto limit = [&](std::string_view groups) { return cgroup_limit(groups, folder.path()); };
  EXPECT_EQ(limit("0::/job_1/step\n"), 5000000000);
  EXPECT_EQ(limit("0::/\n"), std::nullopt);
  EXPECT_EQ(limit("0::/elsewhere/of/another/name\n"), std::nullopt);
  EXPECT_EQ(limit("3:cpu,memory:/job_2/task\n2:pids:/job_1\n"), 7000);
  EXPECT_EQ(limit("3:memory:/\n0::/job_1\n"), 5000000000);
  for (const char* torn : {"", "\n\n", ":", "0::", "0", "4:memory", "4:memory:job_2"}) limit(torn);
}

}  // namespace
}  // namespace pkmesh
