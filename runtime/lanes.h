// SPDX-License-Identifier: Apache-2.0
// What vector registers of CPU kernels are folded with. For x_cpu.cpp alone: nvcc's front end cannot read it.
#pragma once

#include <cstdint>
#include <utility>

#include "runtime/cpu.h"

namespace pkmesh::PKM_CPU {

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

}  // namespace pkmesh::PKM_CPU
