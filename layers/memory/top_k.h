// SPDX-License-Identifier: Apache-2.0
// The k largest of n scores on one core, largest first, ties by the lower index; NaN counts as the largest, so that it
// reaches the weights and the step's finite gate sees it. No sort of n, and no branch that depends on a score.
//
// A bound below the k-th largest comes first: the n scores fall into G >= 2k strided groups, whose maxima vectorise;
// a value that k of these maxima reach is reached by k scores. A short search over the G maxima finds such a value
// close to the best one (for random scores about 1.4 k of n pass it, whatever n is). What passes is ranked by counting
// what is above it, a vector of scores at a time.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "runtime/lanes.h"

namespace pkmesh::PKM_CPU {

// An integer in the order of the scores: -0 and +0 tie, NaN is the largest.
inline int32_t score_order(float score) {
  const auto bits = std::bit_cast<int32_t>(score + 0.0F);  // -0 becomes +0
  return score != score ? std::numeric_limits<int32_t>::max() : bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

class TopK {
 public:
  static constexpr int64_t kMostScores = 65535;  // places are 16 bits

  // n is the largest count to come.
  explicit TopK(int64_t n)
      : flags_(static_cast<size_t>(n) + kWord),
        positions_(flags_.size()),
        orders_(static_cast<size_t>(n + kLanes)),
        places_(orders_.size()),
        by_place_(orders_.size()),
        keys_(orders_.size()) {}

  // scores_out and indices_out [0, k) = the k <= n best. index_of(position) gives the index that breaks ties and is
  // reported.
  template <class IndexOf>
  void operator()(const float* scores, int64_t n, int64_t k, const IndexOf& index_of, float* scores_out,
                  int32_t* indices_out) {
    const int64_t passed = filter(scores, n, bound_below(scores, n, k));
    for (int64_t i = 0; i < passed; ++i) orders_[i] = score_order(scores[positions_[i]]);
    if (!rank(passed)) rank_with_ties(passed, k, index_of);
    for (int64_t i = 0; i < k; ++i) {
      const uint16_t position = positions_[by_place_[i]];
      scores_out[i] = scores[position];
      indices_out[i] = index_of(position);
    }
  }

 private:
  static constexpr int64_t kWord = 8;  // flags that are looked at together
  static constexpr int64_t kMaxGroups = 256;
  static constexpr int64_t kCountingLimit = 256;  // above it sorting is quicker than counting

  // The places of the bits that are set in each byte, ascending.
  static constexpr std::array<std::array<uint16_t, kWord>, 256> kSetBits = [] {
    std::array<std::array<uint16_t, kWord>, 256> places{};
    for (size_t byte = 0; byte < places.size(); ++byte)
      for (size_t bit = 0, next = 0; bit < kWord; ++bit)
        if ((byte >> bit & 1) != 0) places[byte][next++] = static_cast<uint16_t>(bit);
    return places;
  }();

  // The least and the largest of `count` values, a multiple of kLanes; the least is NaN if any is.
  static std::pair<float, float> range_of(const float* values, int64_t count) {
    const auto least = [](Lanes a, Lanes b) { return ((b < a) | (b != b)) ? b : a; };
    const auto largest = [](Lanes a, Lanes b) { return b > a ? b : a; };
    Lanes low;
    std::memcpy(&low, values, sizeof(low));
    Lanes high = low;
    for (int64_t i = kLanes; i < count; i += kLanes) {
      Lanes lanes;
      std::memcpy(&lanes, values + i, sizeof(lanes));
      low = least(low, lanes);
      high = largest(high, lanes);
    }
    return {fold_lanes(low, least), fold_lanes(high, largest)};
  }

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
    auto [low, high] = range_of(maxima.data(), groups);
    if (low != low) return kAll;
    // Three cuts at a time, all counts in one integer: what takes long is to wait for a sum over lanes. `low` is always
    // such a value, whatever infinities or NaN do to the cuts.
    constexpr int kRounds = 4;
    constexpr int kCuts = 3;
    constexpr int kBits = 10;  // of a count, which is at most kMaxGroups
    constexpr int32_t kOnes[kCuts] = {1, 1 << kBits, 1 << 2 * kBits};
    for (int round = 0; round < kRounds; ++round) {
      float edges[kCuts + 2] = {low, 0.75F * low + 0.25F * high, 0.5F * low + 0.5F * high, 0.25F * low + 0.75F * high,
                                high};
      IntLanes counts{};
      for (int64_t g = 0; g < groups; g += kLanes) {
        Lanes lanes;
        std::memcpy(&lanes, maxima.data() + g, sizeof(lanes));
        for (int c = 0; c < kCuts; ++c) counts += (lanes < edges[c + 1]) & kOnes[c];
      }
      const int32_t below = sum_lanes(counts);
      int passed = 0;  // cuts that enough maxima reach: if one does, so do those below it
      for (int c = 0; c < kCuts; ++c) passed += groups - (below >> c * kBits & (kOnes[1] - 1)) >= k ? 1 : 0;
      low = edges[passed];
      high = edges[passed + 1];
    }
    return low;
  }

  // positions_ [0, count) = those of the scores that are not below `bound`, ascending. Returns count.
  int64_t filter(const float* scores, int64_t n, float bound) {
    uint8_t* const flags = flags_.data();
    for (int64_t i = 0; i < n; ++i) flags[i] = scores[i] < bound ? 0 : 1;
    std::memset(flags + n, 0, kWord);
    uint16_t* next = positions_.data();
    for (int64_t begin = 0; begin < n; begin += kWord) {
      uint64_t word;
      std::memcpy(&word, flags + begin, sizeof(word));
      const auto mask = static_cast<size_t>((word * 0x0102040810204080U) >> 56);  // a bit of each byte
      for (int64_t i = 0; i < kWord; ++i) next[i] = static_cast<uint16_t>(kSetBits[mask][i] + begin);
      next += std::popcount(mask);
    }
    return next - positions_.data();
  }

  // by_place_ [0, count) = which of the first `count` is at a place. False if some tie: their place is then the same.
  bool rank(int64_t count) {
    if (count > kCountingLimit) return false;
    const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    std::fill(orders_.begin() + count, orders_.begin() + padded, std::numeric_limits<int32_t>::min());
    IntLanes total{};
    for (int64_t begin = 0; begin < padded; begin += kLanes) {
      IntLanes mine;
      std::memcpy(&mine, orders_.data() + begin, sizeof(mine));
      IntLanes above{};
      for (int64_t j = 0; j < count; ++j) above = orders_[j] > mine ? above + 1 : above;
      std::memcpy(places_.data() + begin, &above, sizeof(above));
      total += above;
    }
    // The padding has all the others above it.
    if (2 * (sum_lanes(total) - (padded - count) * count) != count * (count - 1)) return false;
    for (int64_t i = 0; i < count; ++i) by_place_[places_[i]] = static_cast<uint16_t>(i);
    return true;
  }

  // The same for places [0, k), ties by the lower index.
  template <class IndexOf>
  void rank_with_ties(int64_t count, int64_t k, const IndexOf& index_of) {
    for (int64_t i = 0; i < count; ++i) {
      by_place_[i] = static_cast<uint16_t>(i);
      keys_[i] = static_cast<int64_t>((static_cast<uint64_t>(static_cast<uint32_t>(orders_[i])) << 32) |
                                      (0xFFFFFFFFU - static_cast<uint32_t>(index_of(positions_[i]))));
    }
    std::partial_sort(by_place_.begin(), by_place_.begin() + k, by_place_.begin() + count,
                      [&](uint16_t a, uint16_t b) { return keys_[a] > keys_[b]; });
  }

  std::vector<uint8_t> flags_;
  std::vector<uint16_t> positions_;
  std::vector<int32_t> orders_;
  std::vector<int32_t> places_;
  std::vector<uint16_t> by_place_;
  std::vector<int64_t> keys_;
};

}  // namespace pkmesh::PKM_CPU
