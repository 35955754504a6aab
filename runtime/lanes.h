// SPDX-License-Identifier: Apache-2.0
// What vector registers of CPU kernels are loaded, folded and transposed with. For x_cpu.cpp alone: nvcc's front end
// cannot read it.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "runtime/cpu.h"

namespace pkmesh::PKM_CPU {

using IntLanes = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));

// kLanes consecutive numbers, wherever they lie.
[[gnu::always_inline]] inline Lanes load_lanes(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}
[[gnu::always_inline]] inline IntLanes load_lanes(const int32_t* from) {
  IntLanes lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}
[[gnu::always_inline]] inline void store_lanes(float* to, Lanes lanes) {
  std::memcpy(to, &lanes, sizeof(lanes));
}
[[gnu::always_inline]] inline void store_lanes(int32_t* to, IntLanes lanes) {
  std::memcpy(to, &lanes, sizeof(lanes));
}

// Zeros, a store each: of an array's "= {}" GCC makes a "rep stos", which takes as long as a short row.
template <int kCount>
[[gnu::always_inline]] inline void clear_lanes(Lanes (&vectors)[kCount]) {
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) vectors[i] = Lanes{};
}

// Lane i gets lane i ^ distance.
template <int kDistance, class Vector, int... kLane>
[[gnu::always_inline]] inline Vector swap_lanes(Vector lanes, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(lanes, lanes, (kLane ^ kDistance)...);
}
// All lanes as one number: lane i and lane i + kLanes / 2, then those with theirs, and so on down to one.
template <int kDistance = kLanes / 2, class Vector>
[[gnu::always_inline]] inline auto sum_lanes(Vector lanes) {
  if constexpr (kDistance == 0)
    return lanes[0];
  else
    return sum_lanes<kDistance / 2>(lanes + swap_lanes<kDistance>(lanes, std::make_integer_sequence<int, kLanes>{}));
}

using FourLanes = float __attribute__((vector_size(4 * sizeof(float))));

// Lane r = the sum over the lanes of vectors[r], for four: with fewer additions than one by one.
template <int... kLane>
[[gnu::always_inline]] inline FourLanes sum_lanes_of_four(const Lanes* vectors, std::integer_sequence<int, kLane...>) {
  // Lane i of a pair's vector: of vectors 0 and 1 in turn, its own lanes i and i + 1.
  constexpr auto in_pair = [](int lane, int of) { return lane / 2 * 2 + of + lane % 2 * kLanes; };
  const auto pair = [&](Lanes a, Lanes b) {
    return __builtin_shufflevector(a, b, in_pair(kLane, 0)...) + __builtin_shufflevector(a, b, in_pair(kLane, 1)...);
  };
  // Then of vectors 0, 1, 2, 3 in turn, four lanes each.
  constexpr auto in_four = [](int lane, int of) { return lane / 4 * 4 + lane % 2 + 2 * of + lane % 4 / 2 * kLanes; };
  const Lanes low = pair(vectors[0], vectors[1]);
  const Lanes high = pair(vectors[2], vectors[3]);
  Lanes sums = __builtin_shufflevector(low, high, in_four(kLane, 0)...) +
               __builtin_shufflevector(low, high, in_four(kLane, 1)...);
  if constexpr (kLanes == 16) sums += swap_lanes<8>(sums, std::make_integer_sequence<int, kLanes>{});
  sums += swap_lanes<4>(sums, std::make_integer_sequence<int, kLanes>{});
  return __builtin_shufflevector(sums, sums, 0, 1, 2, 3);
}
[[gnu::always_inline]] inline FourLanes sum_lanes_of_four(const Lanes* vectors) {
  return sum_lanes_of_four(vectors, std::make_integer_sequence<int, kLanes>{});
}

// Lane j of vector i and lane i of vector j change places, for all kLanes vectors: in blocks of halving size.
template <int kDistance, class Vector, int... kLane>
[[gnu::always_inline]] inline void swap_blocks(Vector& upper, Vector& lower, std::integer_sequence<int, kLane...>) {
  constexpr auto in_upper = [](int lane) { return (lane & kDistance) == 0 ? lane : kLanes + lane - kDistance; };
  constexpr auto in_lower = [](int lane) { return (lane & kDistance) == 0 ? lane + kDistance : kLanes + lane; };
  const Vector both = upper;
  upper = __builtin_shufflevector(both, lower, in_upper(kLane)...);
  lower = __builtin_shufflevector(both, lower, in_lower(kLane)...);
}
template <int kDistance = kLanes / 2, class Vector>
[[gnu::always_inline]] inline void transpose_lanes(Vector* vectors) {
  if constexpr (kDistance > 0) {
    for (int64_t i = 0; i < kLanes; ++i)
      if ((i & kDistance) == 0)
        swap_blocks<kDistance>(vectors[i], vectors[i + kDistance], std::make_integer_sequence<int, kLanes>{});
    transpose_lanes<kDistance / 2>(vectors);
  }
}

}  // namespace pkmesh::PKM_CPU
