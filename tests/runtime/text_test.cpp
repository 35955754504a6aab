// SPDX-License-Identifier: Apache-2.0
#include "runtime/text.h"

#include <gtest/gtest.h>

#include <limits>

namespace pkmesh {
namespace {

constexpr double kGi = 1024.0 * 1024 * 1024;

TEST(Text, UnitsSuitTheSize) {
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
  EXPECT_EQ(time_left_text(0), "0s");
  EXPECT_EQ(time_left_text(0.3), "<1s");
  EXPECT_EQ(time_left_text(59.4), "59s");
  EXPECT_EQ(time_left_text(59.6), "1m00s");
  EXPECT_EQ(time_left_text(725), "12m05s");
  EXPECT_EQ(time_left_text(100000), "1d03h");
  EXPECT_EQ(time_left_text(-1), "?");
  EXPECT_EQ(time_left_text(std::numeric_limits<double>::infinity()), "?");
}

}  // namespace
}  // namespace pkmesh
