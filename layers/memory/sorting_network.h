// SPDX-License-Identifier: Apache-2.0
// Sorting networks (Batcher 1968, "Sorting networks and their applications"): a fixed list of compare-exchanges that
// sorts any kCount numbers. Each works on a vector: as many lists are sorted at once as it has lanes, with no branch
// and no step that waits for another list.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "runtime/lanes.h"

namespace pkmesh::PKM_CPU {

// In every lane, the larger number goes to `high`.
[[gnu::always_inline]] inline void compare_exchange(IntLanes& high, IntLanes& low) {
  const IntLanes larger = high > low ? high : low;
  low = high > low ? low : high;
  high = larger;
}

// A network: which numbers are compared, the larger of which goes to `high`.
template <int kMost>
struct Network {
  struct Exchange {
    int high;
    int low;
  };
  std::array<Exchange, kMost> exchanges{};
  int count = 0;

  constexpr void add(int high, int low) { exchanges[static_cast<size_t>(count++)] = {high, low}; }
};

// Odd-even merge sort of kCount numbers, a power of two.
template <int kCount>
constexpr auto merge_sort() {
  Network<kCount * kCount / 2> network;
  for (int sorted = 1; sorted < kCount; sorted *= 2)  // runs of this length are merged in pairs
    for (int apart = sorted; apart >= 1; apart /= 2)  // each pass of a merge compares what is so far apart
      for (int i = 0; i + apart < kCount; ++i)
        if (i / apart % 2 == (apart == sorted ? 0 : 1) && i / (2 * sorted) == (i + apart) / (2 * sorted))
          network.add(i, i + apart);
  return network;
}

// Sorts numbers that rise and then fall, or the other way round (bitonic): halves, quarters and so on.
template <int kCount>
constexpr auto bitonic_merge() {
  Network<kCount * kCount / 2> network;
  for (int apart = kCount / 2; apart >= 1; apart /= 2)
    for (int i = 0; i < kCount; ++i)
      if (i / apart % 2 == 0) network.add(i, i + apart);
  return network;
}

// Every exchange, written out: the compiler then keeps numbers in registers from one to the next.
template <const auto& kNetwork, size_t... kAt>
[[gnu::always_inline]] inline void apply(IntLanes* numbers, std::index_sequence<kAt...>) {
  (compare_exchange(numbers[kNetwork.exchanges[kAt].high], numbers[kNetwork.exchanges[kAt].low]), ...);
}
template <const auto& kNetwork>
[[gnu::always_inline]] inline void apply(IntLanes* numbers) {
  apply<kNetwork>(numbers, std::make_index_sequence<static_cast<size_t>(kNetwork.count)>{});
}

template <int kCount>
inline constexpr auto kMergeSort = merge_sort<kCount>();
template <int kCount>
inline constexpr auto kBitonicMerge = bitonic_merge<kCount>();

// numbers (kCount): largest first, in every lane.
template <int kCount>
void sort_lanes(IntLanes* numbers) {
  apply<kMergeSort<kCount>>(numbers);
}

// best, more (kCount), largest first: best = the largest of both, largest first. Returns the largest of the others, or
// of `dropped`.
template <int kCount>
IntLanes keep_largest(IntLanes* best, const IntLanes* more, IntLanes dropped) {
  for (int i = 0; i < kCount; ++i) {
    IntLanes low = more[kCount - 1 - i];
    compare_exchange(best[i], low);
    dropped = dropped > low ? dropped : low;
  }
  apply<kBitonicMerge<kCount>>(best);
  return dropped;
}

}  // namespace pkmesh::PKM_CPU
