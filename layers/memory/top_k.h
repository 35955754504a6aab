// SPDX-License-Identifier: Apache-2.0
// The k largest of n scores on one core, largest first, ties by the lower index; NaN counts as the largest, so that it
// reaches the weights and the step's finite gate sees it. No sort of n.
//
// A bound below the k-th largest comes first: the n scores fall into G >= 2k strided groups, whose maxima vectorise;
// a value that k of these maxima reach is reached by k scores. A short bisection over the G maxima finds such a value
// close to the best one (for random scores about 1.4 k of n pass it, whatever n is). What passes is ranked by counting,
// without a branch. Scores and indices are ranked as one integer, so that a tie needs no second comparison.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

namespace pkmesh::cpu {

// A score and its index as one integer that sorts by score, then by lower index.
struct RankKey {
  static int64_t make(float score, int32_t index) {
    const auto bits = std::bit_cast<int32_t>(score + 0.0F);  // -0 becomes +0: they tie
    const int32_t ordered = score != score ? std::numeric_limits<int32_t>::max() : bits ^ ((bits >> 31) & 0x7FFFFFFF);
    return static_cast<int64_t>((static_cast<uint64_t>(static_cast<uint32_t>(ordered)) << 32) |
                                (0xFFFFFFFFU - static_cast<uint32_t>(index)));
  }
  static float score(int64_t key) {
    const auto ordered = static_cast<int32_t>(key >> 32);
    return std::bit_cast<float>(ordered ^ ((ordered >> 31) & 0x7FFFFFFF));
  }
  static int32_t index(int64_t key) { return static_cast<int32_t>(0xFFFFFFFFU - static_cast<uint32_t>(key)); }
};

class TopK {
 public:
  // n is the largest count to come.
  explicit TopK(int64_t n) : positions_(static_cast<size_t>(n)), keys_(static_cast<size_t>(n) + kLanes) {}

  // out[0..k) = the keys of the k <= n best. index_of(position) gives the index that breaks ties and is kept.
  template <class IndexOf>
  void operator()(const float* scores, int64_t n, int64_t k, const IndexOf& index_of, int64_t* out) {
    const float bound = bound_below(scores, n, k);
    int64_t passed = 0;
    for (int64_t i = 0; i < n; ++i) {
      positions_[static_cast<size_t>(passed)] = static_cast<int32_t>(i);
      passed += !(scores[i] < bound);
    }
    for (int64_t i = 0; i < passed; ++i) {
      const int32_t position = positions_[static_cast<size_t>(i)];
      keys_[static_cast<size_t>(i)] = RankKey::make(scores[position], index_of(position));
    }
    rank(passed, k, out);
  }

 private:
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kMaxGroups = 256;
  static constexpr int64_t kCountingLimit = 192;  // above it sorting is quicker than counting

  // A value that at least k scores are not below.
  static float bound_below(const float* scores, int64_t n, int64_t k) {
    constexpr float kAll = -std::numeric_limits<float>::infinity();
    const int64_t groups = std::max<int64_t>(64, 2 * static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(k))));
    if (groups > kMaxGroups || 2 * n < 3 * groups) return kAll;
    std::array<float, kMaxGroups> maxima;
    std::copy_n(scores, groups, maxima.data());
    int64_t begin = groups;
    for (; begin + groups <= n; begin += groups)
      for (int64_t g = 0; g < groups; ++g) maxima[g] = scores[begin + g] > maxima[g] ? scores[begin + g] : maxima[g];
    for (int64_t i = begin; i < n; ++i)
      maxima[i - begin] = scores[i] > maxima[i - begin] ? scores[i] : maxima[i - begin];
    float low = maxima[0];
    float high = maxima[0];
    for (int64_t g = 1; g < groups; ++g) {
      low = maxima[g] < low ? maxima[g] : low;
      high = maxima[g] > high ? maxima[g] : high;
    }
    if (low != low) return kAll;
    constexpr int kSteps = 10;
    for (int step = 0; step < kSteps;
         ++step) {  // `low` is always such a value, whatever infinities or NaN do to `middle`
      const float middle = 0.5F * low + 0.5F * high;
      int32_t reached = 0;
      for (int64_t g = 0; g < groups; ++g) reached += !(maxima[g] < middle);
      if (reached >= k) {
        low = middle;
        if (reached <= k + 1) break;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // The k largest of the first `count` keys, in order.
  void rank(int64_t count, int64_t k, int64_t* out) {
    if (count > kCountingLimit) {
      std::partial_sort(keys_.begin(), keys_.begin() + k, keys_.begin() + count, std::greater<>());
      std::copy_n(keys_.begin(), k, out);
      return;
    }
    const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    std::fill(keys_.begin() + count, keys_.begin() + padded, std::numeric_limits<int64_t>::min());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t key = keys_[static_cast<size_t>(i)];
      int64_t place = 0;
      for (int64_t j = 0; j < padded; ++j) place += keys_[static_cast<size_t>(j)] > key;
      if (place < k) out[place] = key;
    }
  }

  std::vector<int32_t> positions_;
  std::vector<int64_t> keys_;
};

}  // namespace pkmesh::cpu
