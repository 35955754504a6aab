// SPDX-License-Identifier: Apache-2.0
// A rank's part of [0, count) when the ranks share work on data that all of them hold. Parts are disjoint, in rank
// order, and cover everything.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

namespace pkmesh {

struct Share {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t count() const { return end - begin; }
  template <class T>
  std::span<T> of(std::span<T> all) const {
    return all.subspan(static_cast<size_t>(begin), static_cast<size_t>(count()));
  }
  // What of another range lies in this one; empty, and in this one, if nothing does.
  Share part_of(Share other) const {
    const int64_t first = std::clamp(other.begin, begin, end);
    return {first, std::clamp(other.end, first, end)};
  }
};
int64_t total(std::span<const Share> shares);  // elements
// Cut at multiples of 4096 elements, so that sums over blocks of as many are those of a single rank, all but the last.
Share share_of(int64_t count, int rank, int size);

}  // namespace pkmesh
