// SPDX-License-Identifier: Apache-2.0
#include "runtime/cpu.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "runtime/check.h"
#include "runtime/dispatch.h"

namespace pkmesh {

PKM_KERNEL(level_of_kernel, CpuLevel& level)
PKM_KERNEL(only_in_the_baseline, CpuLevel& level)
void cpu::level_of_kernel(Stream&, CpuLevel& level) {
  level = CpuLevel::kAvx2;
}
void cpu_avx512::level_of_kernel(Stream&, CpuLevel& level) {
  level = CpuLevel::kAvx512;
}
void cpu::only_in_the_baseline(Stream&, CpuLevel& level) {
  level = CpuLevel::kAvx2;
}

namespace {

constexpr CpuLevel kLevels[] = {CpuLevel::kAvx2, CpuLevel::kAvx512, CpuLevel::kAmx};

TEST(Cpu, TheBestThereIsUnlessAnotherIsAskedFor) {
  for (const CpuLevel best : kLevels) {
    for (const char* nothing : {static_cast<const char*>(nullptr), ""})
      EXPECT_EQ(choose_cpu_level(nothing, best), best);
    for (const CpuLevel asked : kLevels)
      if (asked <= best) {
        EXPECT_EQ(choose_cpu_level(std::string(to_string(asked)).c_str(), best), asked);
      }
  }
}

void expect_refusal(const char* asked, CpuLevel best, const char* words) {
  try {
    choose_cpu_level(asked, best);
    FAIL() << asked << " was taken";
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), words);
  }
}

TEST(Cpu, WhatIsUnknownOrLackingIsRefused) {
  expect_refusal("avx512", CpuLevel::kAvx2, "PKMESH_CPU=avx512: this machine can do avx2 at best; leave it out");
  expect_refusal("amx", CpuLevel::kAvx2, "PKMESH_CPU=amx: this machine can do avx2 at best; leave it out");
  expect_refusal("amx", CpuLevel::kAvx512, "PKMESH_CPU=amx: this machine can do avx512 at best; leave it out");
  for (const CpuLevel best : kLevels) expect_refusal("sse9", best, "PKMESH_CPU=sse9: it takes avx2, avx512 or amx");
}

TEST(Cpu, DispatchTakesTheLevelsKernelOrElseTheBaselines) {
  Stream stream;
  CpuLevel level{};
  PKM_DISPATCH(stream, level_of_kernel, level);
  EXPECT_EQ(level, std::min(cpu_level(), CpuLevel::kAvx512));  // whose kernels kAmx shares
  PKM_DISPATCH(stream, only_in_the_baseline, level);
  EXPECT_EQ(level, CpuLevel::kAvx2);
  const char* asked = std::getenv("PKMESH_CPU");
  if (asked != nullptr) {
    EXPECT_EQ(to_string(cpu_level()), asked);
  }
}

}  // namespace
}  // namespace pkmesh
