// SPDX-License-Identifier: Apache-2.0
// One (sequence, head) at a time: a block of its keys and values is packed once, and the blocks of queries that see it
// pass. Products of the two leave out what no query of a tile sees. A block of queries never begins before the block of
// keys, so each of its queries sees the first of them at least.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "layers/attention.h"
#include "layers/gemm.h"
#include "layers/tile_product.h"
#include "layers/vector_math.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kQueries = 48;
constexpr int64_t kKeys = 256;
constexpr int64_t kStride =
    kKeys + 16;  // between queries' weights: an odd number of lines, so as to use all cache sets
static_assert(kQueries % kTileRows == 0 && kKeys % Panels::kColumns == 0 && kTileRows <= kStride - kKeys);

// Queries [first, first + queries) and keys [key, key + keys), first >= key. Their weights: (queries, kStride), zero in
// the kTileRows places behind the last key that a query sees.
struct Block {
  int64_t first;
  int64_t queries;
  int64_t key;
  int64_t keys;

  // How many keys of the block the block's i-th query sees.
  int64_t seen(int64_t i) const { return std::min(keys, first + i + 1 - key); }
  // The first query of the block that sees the block's j-th key.
  int64_t first_to_see(int64_t j) const { return std::max<int64_t>(0, key + j - first); }
};

// What one thread holds of a head: a few blocks that stay in the second-level cache.
struct Scratch {
  Panels keys, keys_transposed, values, values_transposed;
  std::vector<float> queries, doutput;  // (kQueries, width)
  Panels query_panels, doutput_panels;
  std::vector<float> weights, dweights;  // (kQueries, kStride)
  std::vector<float> sums;               // (kQueries, padded width)
  std::vector<float> dkeys, dvalues;     // (kKeys, padded width)

  static Scratch& of_this_thread(int64_t width) {
    thread_local Scratch scratch;
    const auto padded = static_cast<size_t>(Panels::padded(width));
    for (auto* rows : {&scratch.queries, &scratch.doutput, &scratch.sums}) rows->resize(kQueries * padded);
    for (auto* block : {&scratch.weights, &scratch.dweights}) block->resize(kQueries * kStride);
    for (auto* rows : {&scratch.dkeys, &scratch.dvalues}) rows->resize(kKeys * padded);
    return scratch;
  }
};

template <class F>
void for_tiles(int64_t rows, const F& f) {
  for (int64_t row = 0; row < rows; row += kTileRows) f(row, std::min(kTileRows, rows - row));
}

// scores (queries, kStride) = left (queries, width) right, of tiles in which a query sees a key.
void multiply_seen(const Block& block, const float* left, const Panels& right, float* scores) {
  const int64_t width = right.depth();
  for (int64_t key = 0; key < block.seen(block.queries - 1); key += Panels::kColumns)
    for_tiles(block.queries, [&](int64_t query, int64_t count) {
      if (key < block.seen(query + count - 1))
        multiply_tile<false>({left + query * width, width, 1}, count, right.panel(key), width,
                             scores + query * kStride + key, kStride);
    });
}

// sums (queries, padded width) = weights right (keys, width).
void sum_over_keys(const Block& block, const float* weights, const Panels& right, float* sums) {
  const int64_t stride = Panels::padded(right.columns());
  for (int64_t column = 0; column < right.columns(); column += Panels::kColumns)
    for_tiles(block.queries, [&](int64_t query, int64_t count) {
      multiply_tile<false>({weights + query * kStride, kStride, 1}, count, right.panel(column),
                           block.seen(query + count - 1), sums + query * stride + column, stride);
    });
}

// sums (keys, padded width) += weights^T right (queries, width).
void add_over_queries(const Block& block, const float* weights, const Panels& right, float* sums) {
  const int64_t stride = Panels::padded(right.columns());
  for_tiles(block.seen(block.queries - 1), [&](int64_t key, int64_t count) {
    const int64_t query = block.first_to_see(key);
    for (int64_t column = 0; column < right.columns(); column += Panels::kColumns)
      multiply_tile<true>({weights + query * kStride + key, 1, kStride}, count, right.panel(column, query),
                          block.queries - query, sums + key * stride + column, stride);
  });
}

// One head of one sequence within the packed matrices.
template <class T>
struct Head {
  MatrixSlice<T> part(int64_t which, int64_t first, int64_t count) const {  // 0 queries, 1 keys, 2 values
    return {rows + first * stride + which * stride / 3, count, width, stride};
  }
  T* rows;
  int64_t stride;  // 3 d
  int64_t width;   // d / heads
};

template <class T>
Head<T> head_of(const AttentionShape& shape, Matrix<T> qkv, int64_t sequence, int64_t head) {
  const int64_t width = qkv.size(1) / 3 / shape.heads;
  return {qkv.data() + sequence * shape.context * qkv.size(1) + head * width, qkv.size(1), width};
}

// A head's part of an output, or of the gradient of one.
template <class T>
struct HeadOutput {
  MatrixSlice<T> part(int64_t first, int64_t count) const { return {rows + first * stride, count, width, stride}; }
  T* rows;
  int64_t stride;  // d
  int64_t width;
};

template <class T>
HeadOutput<T> output_of(const AttentionShape& shape, Matrix<T> output, int64_t sequence, int64_t head) {
  const int64_t width = output.size(1) / shape.heads;
  return {output.data() + sequence * shape.context * output.size(1) + head * width, output.size(1), width};
}

float score_scale(int64_t width) {
  return 1.0F / std::sqrt(static_cast<float>(width));
}

// to (rows, stride) = factor * from.
void copy_scaled(float factor, MatrixSlice<const float> from, float* to, int64_t stride) {
  for (int64_t row = 0; row < from.rows; ++row)
#pragma omp simd
    for (int64_t j = 0; j < from.columns; ++j) to[row * stride + j] = factor * from.data[row * from.stride + j];
}

// to = factor * from, or, with kAdd, old * to + factor * from.
template <bool kAdd>
void combine(float old, float* to, float factor, const float* from, int64_t count) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) to[j] = kAdd ? old * to[j] + factor * from[j] : factor * from[j];
}

// row [seen, seen + kTileRows) = value, and on to whole vectors. Returns how many there are.
int64_t hide_behind(float* row, int64_t seen, float value) {
  const int64_t count = (seen + kTileRows + kLanes - 1) / kLanes * kLanes;
  std::fill(row + seen, row + count, value);
  return count;
}

// The running softmax of one query: scores relative to `maximum`, and the sum of their exponentials.
struct OnlineSoftmax {
  float maximum = -std::numeric_limits<float>::infinity();
  float sum = 0.0F;

  // Takes in scores [0, seen), leaves their weights, and zeros behind. Returns what earlier output must be scaled by.
  float take(float* scores, int64_t seen) {
    const int64_t count = hide_behind(scores, seen, -std::numeric_limits<float>::infinity());
    std::array<float, kLanes> tops;
    tops.fill(maximum);
    for (int64_t j = 0; j < count; j += kLanes)
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane)
        tops[lane] = scores[j + lane] > tops[lane] ? scores[j + lane] : tops[lane];
    const float top = *std::ranges::max_element(tops);
    std::array<float, kLanes> totals{};
    for (int64_t j = 0; j < count; j += kLanes)
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        scores[j + lane] = fast_exp(scores[j + lane] - top);
        totals[lane] += scores[j + lane];
      }
    const float rescale = fast_exp(maximum - top);
    sum = sum * rescale + std::accumulate(totals.begin(), totals.end(), 0.0F);
    maximum = top;
    return rescale;
  }
};

int64_t mask_index(const AttentionShape& shape, int64_t pair, int64_t query, int64_t key) {
  return (pair * shape.context + query) * shape.context + key;
}

void multiply_row(float* row, const float* factors, int64_t count) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) row[j] *= factors[j];
}

// Output [first, ...) += what the block's keys add to it, relative to the maxima in `softmax` (of the block's queries).
void forward_block(const AttentionShape& shape, const Block& block, int64_t pair, const Dropout& mask, Scratch& scratch,
                   OnlineSoftmax* softmax, MatrixSlice<float> output) {
  float factors[kKeys];
  float rescale[kQueries];
  multiply_seen(block, scratch.queries.data(), scratch.keys_transposed, scratch.weights.data());
  for (int64_t i = 0; i < block.queries; ++i) {
    float* const row = scratch.weights.data() + i * kStride;
    const int64_t seen = block.seen(i);
    rescale[i] = softmax[i].take(row, seen);
    if (mask.probability > 0.0F) {
      dropout_factors(mask, mask_index(shape, pair, block.first + i, block.key), seen, factors);
      multiply_row(row, factors, seen);
    }
  }
  sum_over_keys(block, scratch.weights.data(), scratch.values, scratch.sums.data());
  const int64_t stride = Panels::padded(output.columns);
  const auto join = block.key == 0 ? combine<false> : combine<true>;
  for (int64_t i = 0; i < block.queries; ++i)
    join(rescale[i], output.data + i * output.stride, 1.0F, scratch.sums.data() + i * stride, output.columns);
}

// Output and log-sum-exp (context) of one head.
void forward_head(const AttentionShape& shape, const Head<const float>& head, int64_t pair, const Dropout& mask,
                  const HeadOutput<float>& output, float* logsumexp) {
  thread_local std::vector<OnlineSoftmax> softmax;
  softmax.assign(static_cast<size_t>(shape.context), {});
  Scratch& scratch = Scratch::of_this_thread(head.width);
  for (int64_t key = 0; key < shape.context; key += kKeys) {
    const int64_t keys = std::min(kKeys, shape.context - key);
    scratch.keys_transposed.take_transposed(head.part(1, key, keys));
    scratch.values.take(head.part(2, key, keys));
    for (int64_t first = key; first < shape.context; first += kQueries) {
      const Block block = {first, std::min(kQueries, shape.context - first), key, keys};
      copy_scaled(score_scale(head.width), head.part(0, first, block.queries), scratch.queries.data(), head.width);
      forward_block(shape, block, pair, mask, scratch, &softmax[static_cast<size_t>(first)],
                    output.part(first, block.queries));
    }
  }
  for (int64_t query = 0; query < shape.context; ++query) {
    const auto [maximum, sum] = softmax[static_cast<size_t>(query)];
    float* const row = output.rows + query * output.stride;
    combine<false>(0.0F, row, 1.0F / sum, row, head.width);
    logsumexp[query] = maximum + std::log(sum);
  }
}

// One row of a block in the backward pass: from scores and weight gradients to what the products need.
// scores become weights after dropout; dweights, the gradients of those, become gradients of the scores.
template <bool kDrops>
void backward_row(float* scores, float* dweights, int64_t seen, float logsumexp, float output_dot,
                  const float* factors) {
  hide_behind(dweights, seen, 0.0F);
  const int64_t count = hide_behind(scores, seen, -std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < count; j += kLanes)
#pragma omp simd
    for (int64_t i = j; i < j + kLanes; ++i) {
      const float weight = fast_exp(scores[i] - logsumexp);
      const float factor = kDrops ? factors[i] : 1.0F;
      scores[i] = weight * factor;
      dweights[i] = weight * (dweights[i] * factor - output_dot);
    }
}

// The block's share of the gradients of its queries (dqueries), keys and values (in scratch).
// output_dots: per query, the sum over keys of weight * dweight = output . doutput (FlashAttention, appendix B).
void backward_block(const AttentionShape& shape, const Block& block, int64_t pair, const Dropout& mask,
                    Scratch& scratch, const float* logsumexp, const float* output_dots, MatrixSlice<float> dqueries) {
  float factors[kStride] = {};
  const bool drops = mask.probability > 0.0F;
  const auto backward = drops ? backward_row<true> : backward_row<false>;
  float* const weights = scratch.weights.data();
  float* const dweights = scratch.dweights.data();
  multiply_seen(block, scratch.queries.data(), scratch.keys_transposed, weights);
  multiply_seen(block, scratch.doutput.data(), scratch.values_transposed, dweights);
  for (int64_t i = 0; i < block.queries; ++i) {
    const int64_t seen = block.seen(i);
    if (drops) dropout_factors(mask, mask_index(shape, pair, block.first + i, block.key), seen, factors);
    backward(weights + i * kStride, dweights + i * kStride, seen, logsumexp[i], output_dots[i], factors);
  }
  add_over_queries(block, weights, scratch.doutput_panels, scratch.dvalues.data());
  add_over_queries(block, dweights, scratch.query_panels, scratch.dkeys.data());
  sum_over_keys(block, dweights, scratch.keys, scratch.sums.data());
  const int64_t stride = Panels::padded(dqueries.columns);
  const auto join = block.key == 0 ? combine<false> : combine<true>;
  for (int64_t i = 0; i < block.queries; ++i)
    join(1.0F, dqueries.data + i * dqueries.stride, score_scale(dqueries.columns), scratch.sums.data() + i * stride,
         dqueries.columns);
}

// Per query of one head: output . doutput.
void dot_rows(const HeadOutput<const float>& output, const HeadOutput<const float>& doutput, std::vector<float>& dots) {
  for (int64_t query = 0; query < std::ssize(dots); ++query) {
    const float* const left = output.rows + query * output.stride;
    const float* const right = doutput.rows + query * doutput.stride;
    float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < output.width; ++j) sum += left[j] * right[j];
    dots[static_cast<size_t>(query)] = sum;
  }
}

// Gradients of one head's queries, keys and values.
void backward_head(const AttentionShape& shape, const Head<const float>& head, int64_t pair, const Dropout& mask,
                   const float* logsumexp, const HeadOutput<const float>& output,
                   const HeadOutput<const float>& doutput, const Head<float>& gradient) {
  thread_local std::vector<float> output_dots;
  output_dots.resize(static_cast<size_t>(shape.context));
  dot_rows(output, doutput, output_dots);
  const int64_t width = head.width;
  const int64_t padded = Panels::padded(width);
  Scratch& scratch = Scratch::of_this_thread(width);
  for (int64_t key = 0; key < shape.context; key += kKeys) {
    const int64_t keys = std::min(kKeys, shape.context - key);
    scratch.keys.take(head.part(1, key, keys));
    scratch.keys_transposed.take_transposed(head.part(1, key, keys));
    scratch.values_transposed.take_transposed(head.part(2, key, keys));
    std::fill_n(scratch.dkeys.data(), keys * padded, 0.0F);
    std::fill_n(scratch.dvalues.data(), keys * padded, 0.0F);
    for (int64_t first = key; first < shape.context; first += kQueries) {
      const Block block = {first, std::min(kQueries, shape.context - first), key, keys};
      copy_scaled(score_scale(width), head.part(0, first, block.queries), scratch.queries.data(), width);
      copy_scaled(1.0F, doutput.part(first, block.queries), scratch.doutput.data(), width);
      scratch.query_panels.take({scratch.queries.data(), block.queries, width, width});
      scratch.doutput_panels.take({scratch.doutput.data(), block.queries, width, width});
      backward_block(shape, block, pair, mask, scratch, logsumexp + first, &output_dots[static_cast<size_t>(first)],
                     gradient.part(0, first, block.queries));
    }
    const auto write = [&](const std::vector<float>& sums, MatrixSlice<float> to) {
      copy_scaled(1.0F, {sums.data(), keys, width, padded}, to.data, to.stride);
    };
    write(scratch.dkeys, gradient.part(1, key, keys));
    write(scratch.dvalues, gradient.part(2, key, keys));
  }
}

}  // namespace

void attention_forward(Stream&, const AttentionShape& shape, Matrix<const float> qkv, const Dropout& mask,
                       Matrix<float> output, Matrix<float> logsumexp) {
  parallel_for(0, shape.sequences * shape.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t sequence = pair / shape.heads;
      const int64_t head = pair % shape.heads;
      forward_head(shape, head_of(shape, qkv, sequence, head), pair, mask, output_of(shape, output, sequence, head),
                   &logsumexp(head, sequence * shape.context));
    }
  });
}

void attention_backward(Stream&, const AttentionShape& shape, Matrix<const float> qkv, Matrix<const float> output,
                        Matrix<const float> logsumexp, Matrix<const float> doutput, const Dropout& mask,
                        Matrix<float> dqkv) {
  parallel_for(0, shape.sequences * shape.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t sequence = pair / shape.heads;
      const int64_t head = pair % shape.heads;
      backward_head(shape, head_of(shape, qkv, sequence, head), pair, mask, &logsumexp(head, sequence * shape.context),
                    output_of(shape, output, sequence, head), output_of(shape, doutput, sequence, head),
                    head_of(shape, dqkv, sequence, head));
    }
  });
}

}  // namespace pkmesh::PKM_CPU
