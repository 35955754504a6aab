// SPDX-License-Identifier: Apache-2.0
#include "io/step_line.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace pkmesh {
namespace {

constexpr double kGi = 1024.0 * 1024 * 1024;

TEST(StepLine, NamesTheLossScaleWhereThereIsOne) {
  StepLine line;
  line.step = 1;
  line.steps = 2;
  EXPECT_EQ(to_string(line).find("scale"), std::string::npos);
  line.loss_scale = 65536;
  EXPECT_NE(to_string(line).find(" | lr 0.00e+00 | scale 65536 | 0.00 ms | "), std::string::npos) << to_string(line);
}

TEST(StepLine, SaysEverythingOnce) {
  StepLine line{120, 20000, 3.41273, 0.8249, 5.98e-4, 412.3, 254321, 38.1 * kGi, 79.1 * kGi, 0.091, 6730, {}};
  EXPECT_EQ(to_string(line),
            "step 120/20000 | loss 3.4127 | gnorm 0.82 | lr 5.98e-04 | 412 ms | 254k tok/s | "
            "mem 38.1/79.1 GiB | comm 9% exposed | eta 1h52m");
  line.exposed.reset();
  line.memory_used = 100 * 1024 * 1024;
  line.memory_total = 512 * 1024 * 1024;
  line.seconds_left = 0;
  line.loss = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(
      to_string(line),
      "step 120/20000 | loss nan | gnorm 0.82 | lr 5.98e-04 | 412 ms | 254k tok/s | mem 100.0/512.0 MiB | eta 0s");
  EXPECT_EQ(to_string(MemoryLine{"L6", 0.6321, 0.9111, 1.18, 312.0 * 1024 * 1024}),
            "memory L6 | used 63.2% | kl 0.91 | hottest shard 1.18x | 312 MiB/step");
}

TEST(StepLine, UnitsSuitTheSize) {
  EXPECT_EQ(duration_text(0.25), "0.25 ms");
  EXPECT_EQ(duration_text(9.996), "10.0 ms");
  EXPECT_EQ(duration_text(999.4), "999 ms");
  EXPECT_EQ(duration_text(999.6), "1.00 s");
  EXPECT_EQ(duration_text(1534), "1.53 s");
  EXPECT_EQ(duration_text(153400), "153 s");
  EXPECT_EQ(count_text(0), "0");
  EXPECT_EQ(count_text(812.4), "812");
  EXPECT_EQ(count_text(2540), "2.54k");
  EXPECT_EQ(count_text(254321), "254k");
  EXPECT_EQ(count_text(999600), "1.00M");
  EXPECT_EQ(count_text(1.25e6), "1.25M");
  EXPECT_EQ(count_text(3e9), "3.00G");
  EXPECT_EQ(bytes_text(0), "0 B");
  EXPECT_EQ(bytes_text(1000), "0.98 KiB");
  EXPECT_EQ(bytes_text(1536), "1.50 KiB");
  EXPECT_EQ(bytes_text(5.5 * kGi), "5.50 GiB");
  EXPECT_EQ(bytes_text(5000 * kGi), "4.88 TiB");
  EXPECT_EQ(time_left_text(59.4), "59s");
  EXPECT_EQ(time_left_text(59.6), "1m00s");
  EXPECT_EQ(time_left_text(725), "12m05s");
  EXPECT_EQ(time_left_text(100000), "1d03h");
  EXPECT_EQ(time_left_text(-1), "?");
  EXPECT_EQ(time_left_text(std::numeric_limits<double>::infinity()), "?");
}

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
