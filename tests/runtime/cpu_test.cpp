// SPDX-License-Identifier: Apache-2.0
#include "runtime/cpu.h"

#include <gtest/gtest.h>

#include <cstdlib>

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

TEST(Cpu, TheBestThereIsUnlessAnotherIsAskedFor) {
  for (const char* nothing : {static_cast<const char*>(nullptr), ""}) {
    EXPECT_EQ(choose_cpu_level(nothing, true), CpuLevel::kAvx512);
    EXPECT_EQ(choose_cpu_level(nothing, false), CpuLevel::kAvx2);
  }
  for (const bool has_avx512 : {false, true}) EXPECT_EQ(choose_cpu_level("avx2", has_avx512), CpuLevel::kAvx2);
  EXPECT_EQ(choose_cpu_level("avx512", true), CpuLevel::kAvx512);
}

void expect_refusal(const char* asked, bool has_avx512, const char* words) {
  try {
    choose_cpu_level(asked, has_avx512);
    FAIL() << asked << " was taken";
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), words);
  }
}

TEST(Cpu, WhatIsUnknownOrLackingIsRefused) {
  expect_refusal("avx512", false, "PKMESH_CPU=avx512: this CPU has no AVX-512; leave it out, or set it to avx2");
  for (const bool has_avx512 : {false, true})
    expect_refusal("sse9", has_avx512, "PKMESH_CPU=sse9: it takes avx2 or avx512");
}

TEST(Cpu, DispatchTakesTheLevelsKernelOrElseTheBaselines) {
  Stream stream;
  CpuLevel level{};
  PKM_DISPATCH(stream, level_of_kernel, level);
  EXPECT_EQ(level, cpu_level());
  PKM_DISPATCH(stream, only_in_the_baseline, level);
  EXPECT_EQ(level, CpuLevel::kAvx2);
  const char* asked = std::getenv("PKMESH_CPU");
  if (asked != nullptr) {
    EXPECT_EQ(to_string(cpu_level()), asked);
  }
}

}  // namespace
}  // namespace pkmesh
