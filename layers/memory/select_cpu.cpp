// SPDX-License-Identifier: Apache-2.0
// Forward: units of (token block, head), each with scores in the thread's own scratch: never T x n.
// Backward: units of (head, half, columns), each with its own part of dqueries and dkeys, tokens in order: no atomics,
// no merging, and the same bits on any number of threads. A token touches about a dozen of n sub-keys per half, so the
// sums over them are a fraction of the GEMM that a dense (T, n) gradient would take.
#include <cblas.h>

#include <optional>

#include "layers/memory/select.h"
#include "layers/memory/top_k.h"
#include "layers/vector_math.h"
#include "runtime/parallel.h"

namespace pkmesh::cpu {
namespace {

constexpr int64_t kTokenBlock = 128;
constexpr int64_t kColumnBlock = 128;

// The pairs (a, b) of 0-based ranks with (a + 1)(b + 1) <= k.
struct RankPairs {
  explicit RankPairs(int64_t k) {
    for (int64_t a = 0; a < k; ++a)
      for (int64_t b = 0; (a + 1) * (b + 1) <= k; ++b) {
        first.push_back(static_cast<uint16_t>(a));
        second.push_back(static_cast<uint16_t>(b));
      }
  }
  int64_t count() const { return static_cast<int64_t>(first.size()); }
  std::vector<uint16_t> first;
  std::vector<uint16_t> second;
};

// The best of one half, unpacked.
struct Half {
  explicit Half(int64_t k) : keys(static_cast<size_t>(k)), scores(keys.size()), indices(keys.size()) {}
  void unpack() {
    for (size_t a = 0; a < keys.size(); ++a) {
      scores[a] = RankKey::score(keys[a]);
      indices[a] = RankKey::index(keys[a]);
    }
  }
  std::vector<int64_t> keys;
  std::vector<float> scores;
  std::vector<int32_t> indices;
};

void softmax(const int64_t* keys, int64_t k, float* weights) {
  const float largest = RankKey::score(keys[0]);
  float sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    weights[i] = fast_exp(RankKey::score(keys[i]) - largest);
    sum += weights[i];
  }
  const float scale = 1.0F / sum;
  for (int64_t i = 0; i < k; ++i) weights[i] *= scale;
}

// Selects with a thread's own scratch, which it keeps from one call to the next.
class HeadSelector {
 public:
  HeadSelector(int64_t n, int64_t k)
      : n_(n),
        k_(k),
        pairs_(k),
        sums_(static_cast<size_t>(pairs_.count())),
        best_(static_cast<size_t>(k)),
        halves_{Half(k), Half(k)},
        top_k_(std::max(n, pairs_.count())),
        scores_(static_cast<size_t>(2 * kTokenBlock * n)) {}

  static HeadSelector& of_this_thread(int64_t n, int64_t k) {
    thread_local std::optional<HeadSelector> selector;
    if (!selector || selector->n_ != n || selector->k_ != k) selector.emplace(n, k);
    return *selector;
  }

  // One head of tokens [begin, end).
  void run(View<const float, 3> queries, View<const float, 4> keys, int64_t head, int64_t begin, int64_t end,
           Matrix<int32_t> slots, Matrix<float> weights) {
    const int64_t width = keys.size(3);
    for (int64_t half = 0; half < 2; ++half)
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(end - begin), static_cast<int>(n_),
                  static_cast<int>(width), 1.0F, &queries(begin, head, half * width),
                  static_cast<int>(queries.size(1) * queries.size(2)), keys[head][half].data(), static_cast<int>(width),
                  0.0F, scores(half, 0), static_cast<int>(n_));
    for (int64_t token = begin; token < end; ++token)
      select(token - begin, &slots(token, head * k_), &weights(token, head * k_));
  }

 private:
  float* scores(int64_t half, int64_t token) { return scores_.data() + (half * kTokenBlock + token) * n_; }

  void select(int64_t token, int32_t* slots, float* weights) {
    for (int64_t half = 0; half < 2; ++half) {
      const auto identity = [](int32_t position) { return position; };
      top_k_(scores(half, token), n_, k_, identity, halves_[half].keys.data());
      halves_[half].unpack();
    }
    const Half& first = halves_[0];
    const Half& second = halves_[1];
    float* sum = sums_.data();
    for (int64_t a = 0; a < k_; ++a) {
      const int64_t partners = k_ / (a + 1);
      for (int64_t b = 0; b < partners; ++b) sum[b] = first.scores[a] + second.scores[b];
      sum += partners;
    }
    const auto slot_of = [&](int32_t pair) {
      return first.indices[pairs_.first[pair]] * static_cast<int32_t>(n_) + second.indices[pairs_.second[pair]];
    };
    top_k_(sums_.data(), pairs_.count(), k_, slot_of, best_.data());
    for (int64_t i = 0; i < k_; ++i) slots[i] = RankKey::index(best_[i]);
    softmax(best_.data(), k_, weights);
  }

  int64_t n_;
  int64_t k_;
  RankPairs pairs_;
  std::vector<float> sums_;
  std::vector<int64_t> best_;
  std::array<Half, 2> halves_;
  TopK top_k_;
  std::vector<float> scores_;
};

// The gradients of one head's k scores, summed per sub-key in each half. place_of (2, n) is -1 throughout, before and
// after.
void group_by_sub_key(const int32_t* slots, const float* weights, const float* dweights, int64_t k, int64_t n,
                      SubKeyGradient* first, SubKeyGradient* second, std::vector<int32_t>& place_of) {
  float mean = 0;
  for (int64_t i = 0; i < k; ++i) mean += weights[i] * dweights[i];
  int32_t counts[2] = {0, 0};
  SubKeyGradient* lists[2] = {first, second};
  for (int64_t i = 0; i < k; ++i) {
    const float gradient = weights[i] * (dweights[i] - mean);
    const int32_t row = slots[i] / static_cast<int32_t>(n);
    const int32_t index[2] = {row, slots[i] - row * static_cast<int32_t>(n)};
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

// All tokens' share of columns [begin, begin + width) of one half of one head.
void backward_columns(View<const float, 3> queries, View<const float, 4> keys, View<const SubKeyGradient, 4> scratch,
                      View<float, 3> dqueries, View<float, 4> dkeys, int64_t head, int64_t half, int64_t begin,
                      int64_t width) {
  const int64_t k = scratch.size(3);
  const int64_t column = half * keys.size(3) + begin;
  for (int64_t token = 0; token < queries.size(0); ++token) {
    const float* query = &queries(token, head, column);
    float* dquery = &dqueries(token, head, column);
    const SubKeyGradient* list = &scratch(token, head, half, 0);
    std::array<float, kColumnBlock> sum{};
    for (int64_t i = 0; i < k && list[i].index >= 0; ++i) {
      const float gradient = list[i].gradient;
      const float* key = &keys(head, half, list[i].index, begin);
      float* dkey = &dkeys(head, half, list[i].index, begin);
      for (int64_t j = 0; j < width; ++j) {
        sum[j] += gradient * key[j];
        dkey[j] += gradient * query[j];
      }
    }
    std::copy_n(sum.data(), width, dquery);
  }
}

}  // namespace

void select_forward(Stream&, View<const float, 3> queries, View<const float, 4> keys, Matrix<int32_t> slots,
                    Matrix<float> weights) {
  const int64_t tokens = queries.size(0);
  const int64_t heads = queries.size(1);
  const int64_t n = keys.size(2);
  const int64_t k = slots.size(1) / heads;
  const int64_t blocks = (tokens + kTokenBlock - 1) / kTokenBlock;
  parallel_for(0, blocks * heads, 1, [&](int64_t begin, int64_t end) {
    HeadSelector& selector = HeadSelector::of_this_thread(n, k);
    for (int64_t unit = begin; unit < end; ++unit) {  // heads outermost: a thread keeps a head's keys in its cache
      const int64_t first = unit % blocks * kTokenBlock;
      selector.run(queries, keys, unit / blocks, first, std::min(first + kTokenBlock, tokens), slots, weights);
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
  parallel_for(0, queries.size(0), 16, [&](int64_t begin, int64_t end) {
    thread_local std::vector<int32_t> place_of;
    if (std::ssize(place_of) < 2 * n) place_of.assign(static_cast<size_t>(2 * n), -1);
    for (int64_t token = begin; token < end; ++token)
      for (int64_t head = 0; head < heads; ++head)
        group_by_sub_key(&slots(token, head * k), &weights(token, head * k), &dweights(token, head * k), k, n,
                         &scratch(token, head, 0, 0), &scratch(token, head, 1, 0), place_of);
  });
  const int64_t column_blocks = (half_width + kColumnBlock - 1) / kColumnBlock;
  parallel_for(0, heads * 2 * column_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t column = unit % column_blocks * kColumnBlock;
      const int64_t half = unit / column_blocks % 2;
      const int64_t head = unit / column_blocks / 2;
      backward_columns(queries, keys, scratch, dqueries, dkeys, head, half, column,
                       std::min(kColumnBlock, half_width - column));
    }
  });
}

}  // namespace pkmesh::cpu
