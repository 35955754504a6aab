// SPDX-License-Identifier: Apache-2.0
// Forward: units of (head, token block). A thread packs a head's keys once, and keeps a block's scores of one half in
// its own scratch: never T x n. Backward: units of (head, half, columns), each with its own part of dqueries and dkeys,
// tokens in order: no atomics, no merging, and the same bits on any number of threads. A token touches about a dozen of
// n sub-keys per half, so the sums over them are a fraction of the GEMM that a dense (T, n) gradient would take.
#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "layers/memory/score_product.h"
#include "layers/memory/select.h"
#include "layers/memory/top_k.h"
#include "layers/vector_math.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

// Tokens whose scores are taken together: few enough that one half's scores (384 KiB with n = 2048, 512 on matrix
// tiles) stay in the second-level cache. No result depends on it.
int64_t token_block(int64_t n) {
  const int64_t unit = ScoreProduct::tokens_at_once(tiles::are_there());
  const int64_t few = n <= 256 ? 252 : n <= 1024 ? 96 : 48;
  return (few + unit - 1) / unit * unit;
}

// Most columns of a unit of the backward pass: what a token has of them is four lines of its query, which lies far from
// the next token's, and of a sub-key. With two lines it took a tenth to a quarter longer.
constexpr int64_t kColumnBlock = 64;

// The pairs (a, b) of 0-based ranks with (a + 1)(b + 1) <= k: for each a, those with b < k / (a + 1).
struct RankPairs {
  explicit RankPairs(int64_t k) {
    for (int64_t a = 0; a < k; ++a) {
      counts.push_back(k / (a + 1));
      for (int64_t b = 0; b < counts.back(); ++b) {
        first.push_back(static_cast<uint16_t>(a));
        second.push_back(static_cast<uint16_t>(b));
      }
    }
  }
  int64_t count() const { return static_cast<int64_t>(first.size()); }
  std::vector<int64_t> counts;  // of each a
  std::vector<uint16_t> first;
  std::vector<uint16_t> second;
};

// The best of one half.
struct Half {
  explicit Half(int64_t entries) : scores(static_cast<size_t>(entries)), indices(scores.size()) {}
  std::vector<float> scores;
  std::vector<int32_t> indices;
};

void softmax(const float* scores, int64_t k, float* weights) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < k; ++i) {
    weights[i] = fast_exp(scores[i] - scores[0]);
    sum += weights[i];
  }
  const float scale = 1.0F / sum;
  for (int64_t i = 0; i < k; ++i) weights[i] *= scale;
}

// Selects with a thread's own scratch, which it keeps from one call to the next: one for each shape of memory.
class HeadSelector {
 public:
  HeadSelector(int64_t n, int64_t k)
      : n_(n),
        k_(k),
        pairs_(k),
        sums_(static_cast<size_t>(kLanes * sums_stride())),
        best_(static_cast<size_t>(kLanes * k)),
        halves_{Half(token_block(n) * k + kLanes), Half(token_block(n) * k + kLanes)},
        top_k_(std::max(n, pairs_.count())),
        scores_(static_cast<size_t>(token_block(n) * ScoreProduct::stride(n))) {}

  static HeadSelector& of_this_thread(int64_t n, int64_t k) {
    thread_local std::vector<std::unique_ptr<HeadSelector>> selectors;
    for (const auto& selector : selectors)
      if (selector->n_ == n && selector->k_ == k) return *selector;
    return *selectors.emplace_back(std::make_unique<HeadSelector>(n, k));
  }

  // run() is to select of this head from now on.
  void take_keys(View<const float, 4> keys, int64_t head) {
    head_ = head;
    for (int64_t half = 0; half < 2; ++half) products_[static_cast<size_t>(half)].take_keys(keys[head][half]);
  }

  // The head's part of tokens [begin, end). The scores of one half at a time are kept, while they are in the cache.
  void run(View<const float, 3> queries, int64_t begin, int64_t end, Matrix<int32_t> slots, Matrix<float> weights) {
    const int64_t width = queries.size(2) / 2;
    const int64_t query_stride = queries.size(1) * queries.size(2);
    for (int64_t half = 0; half < 2; ++half) {
      products_[static_cast<size_t>(half)].multiply(&queries(begin, head_, half * width), query_stride, end - begin,
                                                    scores_.data());
      Half& best = halves_[static_cast<size_t>(half)];
      top_k_(
          {scores_.data(), end - begin, n_, ScoreProduct::stride(n_)}, k_,
          [](int64_t, int32_t position) { return position; },
          [&](int64_t token) {
            return TopK::Out{best.scores.data() + token * k_, best.indices.data() + token * k_};
          });
    }
    for (int64_t token = begin; token < end; token += kLanes)  // as many as TopK takes together
      select_pairs(token - begin, std::min(kLanes, end - token), &slots(token, head_ * k_), &weights(token, head_ * k_),
                   slots.size(1));
  }

 private:
  // Room for one token's sums: storing the last ones goes on for less than a vector.
  int64_t sums_stride() const { return pairs_.count() + kLanes; }

  // Of kLanes tokens at most; their slots and weights lie `stride` apart.
  void select_pairs(int64_t first_token, int64_t tokens, int32_t* slots, float* weights, int64_t stride) {
    for (int64_t t = 0; t < tokens; ++t) add_pairs((first_token + t) * k_, sums_.data() + t * sums_stride());
    const auto slot_of = [n = static_cast<int32_t>(n_), k = k_, first = pairs_.first.data(),
                          second = pairs_.second.data(), lines = halves_[0].indices.data() + first_token * k_,
                          columns = halves_[1].indices.data() + first_token * k_](int64_t t, int32_t pair) {
      return lines[t * k + first[pair]] * n + columns[t * k + second[pair]];
    };
    top_k_({sums_.data(), tokens, pairs_.count(), sums_stride()}, k_, slot_of, [&](int64_t t) {
      return TopK::Out{best_.data() + t * k_, slots + t * stride};
    });
    for (int64_t t = 0; t < tokens; ++t) softmax(best_.data() + t * k_, k_, weights + t * stride);
  }

  // sums = in the pairs' order, a vector at a time: what is behind a's last pair is overwritten.
  void add_pairs(int64_t from, float* sums) const {
    const float* const first = halves_[0].scores.data() + from;
    const float* const second = halves_[1].scores.data() + from;
    const int64_t* const counts = pairs_.counts.data();
    const int64_t k = k_;
    for (int64_t a = 0; a < k; sums += counts[a++])
      for (int64_t b = 0; b < counts[a]; b += kLanes) store_lanes(sums + b, first[a] + load_lanes(second + b));
  }

  int64_t n_;
  int64_t k_;
  int64_t head_ = 0;
  RankPairs pairs_;
  std::vector<float> sums_;     // (kLanes, sums_stride())
  std::vector<float> best_;     // (kLanes, k)
  std::array<Half, 2> halves_;  // (token block, k)
  std::array<ScoreProduct, 2> products_ = {ScoreProduct(tiles::are_there()), ScoreProduct(tiles::are_there())};
  TopK top_k_;
  std::vector<float> scores_;  // (token block, ScoreProduct::stride(n))
};

// Line and column of a slot: slot / n and slot % n without a division. Exact for slots below n * n <= 2^31.
class SlotAddress {
 public:
  explicit SlotAddress(int64_t n) : n_(static_cast<int32_t>(n)), inverse_((uint64_t{1} << kShift) / n + 1) {}
  std::array<int32_t, 2> operator()(int32_t slot) const {
    const auto line = static_cast<int32_t>(static_cast<uint64_t>(slot) * inverse_ >> kShift);
    return {line, slot - line * n_};
  }

 private:
  // The quotient is too large by less than slot / 2^48 < 1 / n; slot * inverse_ <= n 2^48 + n^2 < 2^64.
  static constexpr int kShift = 48;
  int32_t n_;
  uint64_t inverse_;
};

// The gradients of one head's k scores, summed per sub-key in each half. place_of (2, n) is -1 throughout, before and
// after.
void group_by_sub_key(const SlotAddress& address_of, const int32_t* slots, const float* weights, const float* dweights,
                      int64_t k, int64_t n, SubKeyGradient* first, SubKeyGradient* second,
                      std::vector<int32_t>& place_of) {
  float mean = 0;
  for (int64_t i = 0; i < k; ++i) mean += weights[i] * dweights[i];
  int32_t counts[2] = {0, 0};
  SubKeyGradient* lists[2] = {first, second};
  for (int64_t i = 0; i < k; ++i) {
    const float gradient = weights[i] * (dweights[i] - mean);
    const std::array<int32_t, 2> index = address_of(slots[i]);
    for (int half = 0; half < 2; ++half) {
      int32_t& place = place_of[static_cast<size_t>(half * n + index[half])];
      if (place < 0) {
        place = counts[half]++;
        lists[half][place] = {index[half], 0.0F};
      }
      lists[half][place].gradient += gradient;
    }
  }
  for (int half = 0; half < 2; ++half) {
    for (int32_t i = 0; i < counts[half]; ++i) place_of[static_cast<size_t>(half * n + lists[half][i].index)] = -1;
    if (counts[half] < k) lists[half][counts[half]].index = -1;
  }
}

// All tokens' share of a block of columns of one half of one head. A token's query and the gradient of it stay in
// registers, or next to them, while its sub-keys pass.
struct ColumnBlock {
  View<const float, 3> queries;
  View<const float, 4> keys;
  View<const SubKeyGradient, 4> lists;  // (H, 2, T, k)
  View<float, 3> dqueries;
  View<float, 4> dkeys;

  // Columns [begin, end) of a half, as many vectors of them at a time as there are.
  template <int kVectors = kColumnBlock / kLanes>
  void run(int64_t head, int64_t half, int64_t begin, int64_t end) const {
    for (; begin + kVectors * kLanes <= end; begin += kVectors * kLanes) whole<kVectors>(head, half, begin);
    if constexpr (kVectors > 1)
      run<kVectors / 2>(head, half, begin, end);
    else if (begin < end)
      part(head, half, begin, end - begin);
  }

 private:
  static constexpr int64_t kAhead = 8;  // tokens
  static constexpr int64_t kLine = 16;  // floats of a cache line

  template <int kVectors>
  void whole(int64_t head, int64_t half, int64_t begin) const {
    const int64_t k = lists.size(3);
    const int64_t width = keys.size(3);
    const int64_t tokens = queries.size(0);
    const float* const key_base = &keys(head, half, 0, begin);
    float* const dkey_base = &dkeys(head, half, 0, begin);
    for (int64_t token = 0; token < tokens; ++token) {
      // Tokens lie a whole query apart, which is further than the hardware foresees.
      const int64_t ahead = std::min(token + kAhead, tokens - 1);
      for (int64_t j = 0; j < kVectors * kLanes; j += kLine) {
        __builtin_prefetch(&queries(ahead, head, half * width + begin + j));
        __builtin_prefetch(&dqueries(ahead, head, half * width + begin + j), 1);
      }
      const SubKeyGradient* list = &lists(head, half, token, 0);
      const float* from = &queries(token, head, half * width + begin);
      Lanes query[kVectors];
      Lanes dquery[kVectors] = {};
      for (int64_t v = 0; v < kVectors; ++v) query[v] = load_lanes(from + v * kLanes);
      for (int64_t i = 0; i < k && list[i].index >= 0; ++i) {
        const float gradient = list[i].gradient;
        const float* key = key_base + list[i].index * width;
        float* dkey = dkey_base + list[i].index * width;
        for (int64_t v = 0; v < kVectors; ++v) {
          dquery[v] += gradient * load_lanes(key + v * kLanes);
          store_lanes(dkey + v * kLanes, load_lanes(dkey + v * kLanes) + gradient * query[v]);
        }
      }
      float* to = &dqueries(token, head, half * width + begin);
      for (int64_t v = 0; v < kVectors; ++v) store_lanes(to + v * kLanes, dquery[v]);
    }
  }

  void part(int64_t head, int64_t half, int64_t begin, int64_t columns) const {
    const int64_t k = lists.size(3);
    for (int64_t token = 0; token < queries.size(0); ++token) {
      const SubKeyGradient* list = &lists(head, half, token, 0);
      const float* query = &queries(token, head, half * keys.size(3) + begin);
      std::array<float, kLanes> sum{};
      for (int64_t i = 0; i < k && list[i].index >= 0; ++i) {
        const float* key = &keys(head, half, list[i].index, begin);
        float* dkey = &dkeys(head, half, list[i].index, begin);
        for (int64_t j = 0; j < columns; ++j) {
          sum[j] += list[i].gradient * key[j];
          dkey[j] += list[i].gradient * query[j];
        }
      }
      std::copy_n(sum.data(), columns, &dqueries(token, head, half * keys.size(3) + begin));
    }
  }
};

}  // namespace

void select_forward(Stream&, View<const float, 3> queries, View<const float, 4> keys, Matrix<int32_t> slots,
                    Matrix<float> weights) {
  const int64_t tokens = queries.size(0);
  const int64_t heads = queries.size(1);
  const int64_t n = keys.size(2);
  const int64_t k = slots.size(1) / heads;
  const int64_t block = token_block(n);
  const int64_t blocks = (tokens + block - 1) / block;
  parallel_for(0, blocks * heads, 1, [&](int64_t begin, int64_t end) {
    HeadSelector& selector = HeadSelector::of_this_thread(n, k);
    for (int64_t unit = begin; unit < end; ++unit) {  // heads outermost: a thread takes a head's keys once
      const int64_t first = unit % blocks * block;
      if (unit == begin || first == 0) selector.take_keys(keys, unit / blocks);
      selector.run(queries, first, std::min(first + block, tokens), slots, weights);
    }
  });
}

void select_backward(Stream&, View<const float, 3> queries, View<const float, 4> keys, Matrix<const int32_t> slots,
                     Matrix<const float> weights, Matrix<const float> dweights, View<SubKeyGradient, 4> scratch,
                     View<float, 3> dqueries, View<float, 4> dkeys) {
  const int64_t heads = queries.size(1);
  const int64_t n = keys.size(2);
  const int64_t half_width = keys.size(3);
  const int64_t k = scratch.size(3);
  const int64_t tokens = queries.size(0);
  const View<SubKeyGradient, 4> lists = scratch.reshape(heads, 2, tokens, k);  // a unit's in one piece
  const SlotAddress address_of(n);
  parallel_for(0, tokens, 16, [&](int64_t begin, int64_t end) {
    thread_local std::vector<int32_t> place_of;
    if (std::ssize(place_of) < 2 * n) place_of.assign(static_cast<size_t>(2 * n), -1);
    for (int64_t token = begin; token < end; ++token)
      for (int64_t head = 0; head < heads; ++head)
        group_by_sub_key(address_of, &slots(token, head * k), &weights(token, head * k), &dweights(token, head * k), k,
                         n, &lists(head, 0, token, 0), &lists(head, 1, token, 0), place_of);
  });
  const ColumnBlock block = {queries, keys, lists, dqueries, dkeys};
  const auto blocks_of = [&](int64_t columns) { return (half_width + columns - 1) / columns; };
  const bool enough = heads * 2 * blocks_of(kColumnBlock) >= threads();  // for every thread to have a unit
  const int64_t unit_columns = enough ? kColumnBlock : kColumnBlock / 2;
  const int64_t column_blocks = blocks_of(unit_columns);
  parallel_for(0, heads * 2 * column_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t column = unit % column_blocks * unit_columns;
      const int64_t half = unit / column_blocks % 2;
      const int64_t head = unit / column_blocks / 2;
      block.run(head, half, column, std::min(column + unit_columns, half_width));
    }
  });
}

}  // namespace pkmesh::PKM_CPU
