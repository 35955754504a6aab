// SPDX-License-Identifier: Apache-2.0
// One program for CPUs of several ages. Every x_cpu.cpp is compiled once per level, from the same source, into a
// namespace of its own (see dispatch.h); the level of this run is decided once, for all ops.
//
// Results repeat bit for bit on a level. Two levels sum in vectors of different width and differ in rounding.
#pragma once

#include <cstdint>
#include <string_view>

// The namespace of the level that a file of kernels is being compiled for; CMake names it for all but the baseline.
#ifndef PKM_CPU
#define PKM_CPU cpu
#endif

namespace pkmesh {

enum class CpuLevel {
  kAvx2,    // the baseline: whatever -DPKMESH_MARCH names
  kAvx512,  // x86-64-v4: AVX-512 F, BW, CD, DQ, VL
  kAmx,     // and matrix tiles of bf16, which the system lets us use (runtime/matrix_tiles.h); kernels are kAvx512's
};

// The best that this CPU has, or what the environment's PKMESH_CPU asks for: "avx2", "avx512" or "amx". Throws
// UserError if it asks for anything else, or for what this CPU lacks.
CpuLevel cpu_level();
std::string_view to_string(CpuLevel level);

// What cpu_level() makes of PKMESH_CPU on a CPU that can do as much as `best`; null or empty: not set.
CpuLevel choose_cpu_level(const char* asked, CpuLevel best);

namespace PKM_CPU {
#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));  // a vector register
}  // namespace PKM_CPU

}  // namespace pkmesh
