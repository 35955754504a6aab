// SPDX-License-Identifier: Apache-2.0
// The k largest of n scores on one core, largest first, ties by the lower index; NaN counts as the largest, so that it
// reaches the weights and the step's finite gate sees it. No branch that depends on a score, and two ways:
//
// Of few scores (n <= 128), a vector of lists at a time goes through sorting networks. Such a network moves numbers,
// not pairs: a score's lowest bits give way to its position. A list in which what is left of two scores is the same,
// where it matters, takes the other way.
//
// Of many, no sort: a bound below the k-th largest comes first: the n scores fall into G >= 2k strided groups, whose
// maxima vectorise; a value that k of these maxima reach is reached by k scores. A short search over the G maxima finds
// such a value close to the best one (of random scores about 1.3 k of n = 512 pass it, 1.4 k of many more): a vector of
// lists at a time, for in one list each step would wait for the one before it. What passes is ranked by counting what
// is above it, a vector of scores at a time.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "layers/memory/sorting_network.h"
#include "runtime/check.h"
#include "runtime/lanes.h"

namespace pkmesh::PKM_CPU {

// Integers in the order of the scores: -0 and +0 tie, NaN is the largest. And back: some score of that order.
[[gnu::always_inline]] inline IntLanes score_order(Lanes scores) {
  const auto bits = std::bit_cast<IntLanes>(scores + 0.0F);  // -0 becomes +0
  const IntLanes largest = IntLanes{} + std::numeric_limits<int32_t>::max();
  return scores != scores ? largest : bits ^ ((bits >> 31) & 0x7FFFFFFF);
}
[[gnu::always_inline]] inline Lanes score_of(IntLanes order) {
  return std::bit_cast<Lanes>(order ^ ((order >> 31) & 0x7FFFFFFF));
}

// `count` lists of n scores, their beginnings `stride` apart.
struct ScoreLists {
  const float* scores;
  int64_t count;
  int64_t n;
  int64_t stride;

  const float* of(int64_t list) const { return scores + list * stride; }
};

class TopK {
 public:
  static constexpr int64_t kMostScores = 65535;  // positions are 16 bits

  // Where a list's k best go, in their order.
  struct Out {
    float* scores;
    int32_t* indices;
  };

  // n is the largest count to come.
  explicit TopK(int64_t n)
      : flags_(static_cast<size_t>(n) + kWord),
        positions_(flags_.size()),
        orders_(static_cast<size_t>(n + kLanes)),
        places_(orders_.size()),
        by_place_(orders_.size()),
        keys_(orders_.size()) {
    PKM_CHECK(n <= kMostScores, "the best of {} scores, more than {}", n, kMostScores);
  }

  // out_of(list) [0, k) = the k <= n best of every list. index_of(list, position) gives the index that breaks ties and
  // is reported.
  template <class IndexOf, class OutOf>
  void operator()(const ScoreLists& lists, int64_t k, const IndexOf& index_of, const OutOf& out_of) {
    if (kSorted / 2 < k && k <= kSorted && lists.n <= kFew)
      by_sorting(lists, k, index_of, out_of);
    else
      by_bound(lists, k, index_of, out_of);
  }

 private:
  static constexpr int64_t kSorted = 32;  // keys that a network sorts: one for 16 would not beat the bound
  static constexpr int64_t kFew = 128;    // scores; of 256 both ways take as long
  static constexpr int64_t kWord = 8;     // flags that are looked at together
  static constexpr int64_t kMaxGroups = 256;
  static constexpr int64_t kCountingLimit = 256;  // above it sorting is quicker than counting
  using Positions = uint16_t __attribute__((vector_size(kWord * sizeof(uint16_t))));

  // The places of the bits that are set in each byte, ascending.
  static constexpr std::array<std::array<uint16_t, kWord>, 256> kSetBits = [] {
    std::array<std::array<uint16_t, kWord>, 256> places{};
    for (size_t byte = 0; byte < places.size(); ++byte)
      for (size_t bit = 0, next = 0; bit < kWord; ++bit)
        if ((byte >> bit & 1) != 0) places[byte][next++] = static_cast<uint16_t>(bit);
    return places;
  }();

  static constexpr int32_t kLowest = std::numeric_limits<int32_t>::min();

  template <class IndexOf, class OutOf>
  void by_sorting(const ScoreLists& lists, int64_t k, const IndexOf& index_of, const OutOf& out_of) {
    const auto position_bits = static_cast<int32_t>(std::bit_ceil(static_cast<uint64_t>(lists.n)) - 1);
    for (int64_t first = 0; first < lists.count; first += kLanes) {
      IntLanes best[kSorted];
      const IntLanes dropped = largest_keys(lists, first, position_bits, best);
      IntLanes unclear{};  // which lists' k best the positions decide: among them, or the last against the next one
      for (int64_t i = 0; i < k; ++i) {
        const IntLanes next = i + 1 < kSorted ? best[i + 1] : dropped;
        unclear |= ((best[i] ^ next) & ~position_bits) == 0;
      }
      std::array<float, kLanes> bounds;  // what is left of the k-th: k scores are not below it
      store_lanes(bounds.data(), score_of(best[k - 1] & ~position_bits));
      for (IntLanes& key : best) key &= position_bits;
      for (int64_t begin = 0; begin < kSorted; begin += kLanes) transpose_lanes(best + begin);
      for (int64_t list = first; list < std::min(first + kLanes, lists.count); ++list) {
        const float* const scores = lists.of(list);
        const auto index_at = [&](int32_t position) { return index_of(list, position); };
        const Out out = out_of(list);
        if (unclear[list - first] != 0) {
          select(scores, lists.n, k, bounds[list - first], index_at, out);
          continue;
        }
        for (int64_t i = 0; i < k; ++i) {
          const int32_t position = best[i / kLanes * kLanes + list - first][i % kLanes];
          out.scores[i] = scores[position];
          out.indices[i] = index_at(position);
        }
      }
    }
  }

  // best = the kSorted largest keys of each of lists [first, first + kLanes), a lane each. Returns the largest of the
  // others.
  static IntLanes largest_keys(const ScoreLists& lists, int64_t first, int32_t position_bits, IntLanes* best) {
    IntLanes dropped = IntLanes{} + kLowest;
    take_keys(lists, first, 0, position_bits, best);
    sort_lanes<kSorted>(best);
    for (int64_t begin = kSorted; begin < lists.n; begin += kSorted) {
      IntLanes more[kSorted];
      take_keys(lists, first, begin, position_bits, more);
      sort_lanes<kSorted>(more);
      dropped = keep_largest<kSorted>(best, more, dropped);
    }
    return dropped;
  }

  // keys (kSorted) of positions from `begin` on, of lists [first, first + kLanes), a lane each: a score's order, its
  // lowest bits replaced by the position. Behind a list's end, and of lists that are none, anything that is not larger.
  static void take_keys(const ScoreLists& lists, int64_t first, int64_t begin, int32_t position_bits, IntLanes* keys) {
    for (int64_t i = 0; i < kSorted; i += kLanes) {
      Lanes block[kLanes];
      const int64_t inside = std::clamp<int64_t>(lists.n - begin - i, 0, kLanes);
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float* const scores = lists.of(std::min(first + lane, lists.count - 1));
        if (inside == kLanes) {
          block[lane] = load_lanes(scores + begin + i);
        } else {
          block[lane] = Lanes{};
          for (int64_t j = 0; j < inside; ++j) block[lane][j] = scores[begin + i + j];
        }
      }
      transpose_lanes(block);
      for (int64_t j = 0; j < kLanes; ++j)
        keys[i + j] = j < inside ? (score_order(block[j]) & ~position_bits) | static_cast<int32_t>(begin + i + j)
                                 : IntLanes{} + kLowest;
    }
  }

  template <class IndexOf, class OutOf>
  void by_bound(const ScoreLists& lists, int64_t k, const IndexOf& index_of, const OutOf& out_of) {
    std::array<float, kLanes> bounds;
    for (int64_t list = 0; list < lists.count; ++list) {
      const int64_t lane = list % kLanes;
      if (lane == 0) store_lanes(bounds.data(), bounds_below(lists, list, k));
      select(
          lists.of(list), lists.n, k, bounds[lane], [&](int32_t position) { return index_of(list, position); },
          out_of(list));
    }
  }

  // Of lists [first, first + kLanes), a lane each, values that at least k of a list's scores are not below.
  static Lanes bounds_below(const ScoreLists& lists, int64_t first, int64_t k) {
    constexpr Lanes kAll = Lanes{} - std::numeric_limits<float>::infinity();
    const int64_t groups = std::max<int64_t>(64, 2 * static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(k))));
    if (groups > kMaxGroups || 2 * lists.n < 3 * groups) return kAll;
    std::array<Lanes, kMaxGroups> maxima;  // of a group, in every list
    for (int64_t group = 0; group < groups; group += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane)  // what is behind the last list repeats it
        maxima[group + lane] = first + lane < lists.count ? group_maxima(lists.of(first + lane), lists.n, group, groups)
                                                          : maxima[group + lane - 1];
      transpose_lanes(&maxima[group]);
    }
    Lanes low = maxima[0];
    Lanes high = maxima[0];
    for (int64_t group = 1; group < groups; ++group) {
      const Lanes maximum = maxima[group];
      low = maximum < low ? maximum : low;
      high = maximum > high ? maximum : high;
    }
    // `low` is always such a value: it moves to a cut that k maxima reach. A NaN that is a maximum is above any cut,
    // and a cut that is NaN is below anything, as it is for filter().
    constexpr int kRounds = 4;
    for (int round = 0; round < kRounds; ++round) {
      const Lanes cuts[3] = {0.75F * low + 0.25F * high, 0.5F * low + 0.5F * high, 0.25F * low + 0.75F * high};
      IntLanes minus_below[3] = {};
      for (int64_t group = 0; group < groups; ++group)
        for (int c = 0; c < 3; ++c) minus_below[c] += maxima[group] < cuts[c];
      const auto reached = [&](int c) { return minus_below[c] >= static_cast<int32_t>(k - groups); };  // by k maxima
      high = reached(2) ? high : reached(1) ? cuts[2] : reached(0) ? cuts[1] : cuts[0];
      low = reached(2) ? cuts[2] : reached(1) ? cuts[1] : reached(0) ? cuts[0] : low;
    }
    return low;
  }

  // Lane j: the largest of the scores at group + j, group + j + groups and so on.
  static Lanes group_maxima(const float* scores, int64_t n, int64_t group, int64_t groups) {
    Lanes maxima = load_lanes(scores + group);
    int64_t i = group + groups;
    for (; i + kLanes <= n; i += groups) {
      const Lanes more = load_lanes(scores + i);
      maxima = more > maxima ? more : maxima;
    }
    for (int64_t lane = 0; lane < n - i; ++lane) maxima[lane] = std::max(maxima[lane], scores[i + lane]);
    return maxima;
  }

  template <class IndexOf>
  void select(const float* scores, int64_t n, int64_t k, float bound, const IndexOf& index_of, const Out& out) {
    const int64_t passed = filter(scores, n, bound);
    for (int64_t i = 0; i < passed; ++i) orders_[i] = std::bit_cast<int32_t>(scores[positions_[i]]);
    for (int64_t i = 0; i < passed; i += kLanes)
      store_lanes(orders_.data() + i, score_order(std::bit_cast<Lanes>(load_lanes(orders_.data() + i))));
    if (!rank(passed)) rank_with_ties(passed, k, index_of);
    for (int64_t i = 0; i < k; ++i) {
      const uint16_t position = positions_[by_place_[i]];
      out.scores[i] = scores[position];
      out.indices[i] = index_of(position);
    }
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
      Positions positions;
      std::memcpy(&positions, kSetBits[mask].data(), sizeof(positions));
      positions += static_cast<uint16_t>(begin);
      std::memcpy(next, &positions, sizeof(positions));
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
    int64_t begin = 0;
    for (; begin + 2 * kLanes <= padded; begin += 2 * kLanes) total += count_above<2>(begin, count);
    if (begin < padded) total += count_above<1>(begin, count);
    // The padding has all the others above it.
    if (2 * (sum_lanes(total) - (padded - count) * count) != count * (count - 1)) return false;
    for (int64_t i = 0; i < count; ++i) by_place_[places_[i]] = static_cast<uint16_t>(i);
    return true;
  }

  // places_ [begin, begin + kVectors lanes) = how many of the first `count` are above each. Returns their sum by lane.
  template <int kVectors>
  IntLanes count_above(int64_t begin, int64_t count) {
    const int32_t* const orders = orders_.data();
    IntLanes mine[kVectors];
    IntLanes above[kVectors] = {};
    for (int v = 0; v < kVectors; ++v) mine[v] = load_lanes(orders + begin + v * kLanes);
    for (int64_t j = 0; j < count; ++j)
      for (int v = 0; v < kVectors; ++v) above[v] -= orders[j] > mine[v];
    IntLanes total{};
    for (int v = 0; v < kVectors; ++v) {
      store_lanes(places_.data() + begin + v * kLanes, above[v]);
      total += above[v];
    }
    return total;
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
