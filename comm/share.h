// SPDX-License-Identifier: Apache-2.0
// A rank's part of [0, count) when the ranks share work on data that all of them hold. Parts are disjoint, in rank
// order, and cover everything.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pkmesh {

struct Share {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t count() const { return end - begin; }
  // What of another range lies in this one; empty, and in this one, if nothing does.
  Share part_of(Share other) const {
    const int64_t first = std::clamp(other.begin, begin, end);
    return {first, std::clamp(other.end, first, end)};
  }
};
// Cut at multiples of 4096 elements, so that sums over blocks of as many are those of a single rank, all but the last.
Share share_of(int64_t count, int rank, int size);

// Ranks that share memory: which of how many a rank is among those of its host.
struct Sharing {
  int place = 0;
  int ranks = 1;  // 1: it shares none
};
inline Share share_of(int64_t count, const Sharing& sharing) {
  return share_of(count, sharing.place, sharing.ranks);
}

}  // namespace pkmesh
