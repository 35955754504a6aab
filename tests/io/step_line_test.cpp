// SPDX-License-Identifier: Apache-2.0
#include "io/step_line.h"

#include <gtest/gtest.h>

#include <limits>

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
  line.loss = -std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(
      to_string(line),
      "step 120/20000 | loss nan | gnorm 0.82 | lr 5.98e-04 | 412 ms | 254k tok/s | mem 100.0/512.0 MiB | eta 0s");
  EXPECT_EQ(to_string(MemoryLine{"layer6", 0.6321, 0.9111, 1.18, 312.0 * 1024 * 1024}),
            "memory layer6 | used 63.2% | kl 0.91 | hottest shard 1.18x | 312 MiB/step");
}

}  // namespace
}  // namespace pkmesh
