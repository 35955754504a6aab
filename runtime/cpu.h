// SPDX-License-Identifier: Apache-2.0
// One program for CPUs of several ages. Every x_cpu.cpp is compiled once per level, from the same source, into a
// namespace of its own (see dispatch.h); the level of this run is decided once, for all ops.
//
// Results repeat bit for bit on a level. Two levels sum in vectors of different width and differ in rounding.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

// The namespace of the level that a file of kernels is being compiled for; CMake names it for all but the baseline.
#ifndef PKM_CPU
#define PKM_CPU cpu
#endif

namespace pkmesh {

enum class CpuLevel {
  kAvx2,    // the baseline: whatever -DPKMESH_MARCH names
  kAvx512,  // x86-64-v4: AVX-512 F, BW, CD, DQ, VL
};

// The best that this CPU has, or what the environment's PKMESH_CPU asks for: "avx2" or "avx512". Throws UserError if it
// asks for anything else, or for what this CPU lacks.
CpuLevel cpu_level();
std::string_view to_string(CpuLevel level);

// What cpu_level() makes of PKMESH_CPU; null or empty: not set.
CpuLevel choose_cpu_level(const char* asked, bool has_avx512);

namespace PKM_CPU {
#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));  // a vector register
using IntLanes = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));

// Lane i gets lane i ^ distance.
template <int kDistance, class Vector, int... kLane>
[[gnu::always_inline]] inline Vector swap_lanes(Vector lanes, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(lanes, lanes, (kLane ^ kDistance)...);
}
// All lanes as one number: lane i with lane i + kLanes / 2, then those with theirs, and so on down to one.
template <int kDistance = kLanes / 2, class Vector, class Fold>
[[gnu::always_inline]] inline auto fold_lanes(Vector lanes, const Fold& fold) {
  if constexpr (kDistance == 0)
    return lanes[0];
  else
    return fold_lanes<kDistance / 2>(
        fold(lanes, swap_lanes<kDistance>(lanes, std::make_integer_sequence<int, kLanes>{})), fold);
}
template <class Vector>
[[gnu::always_inline]] inline auto sum_lanes(Vector lanes) {
  return fold_lanes(lanes, [](Vector a, Vector b) { return a + b; });
}
}  // namespace PKM_CPU

}  // namespace pkmesh
