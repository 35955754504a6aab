// SPDX-License-Identifier: Apache-2.0
// One (sequence, head) at a time: its queries, keys and values are column slices of qkv, read in place by gemm.
// Query blocks meet key blocks; since kKeys is a multiple of kQueries, every query of a block sees at least the first
// key of every key block that the block meets.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "layers/attention.h"
#include "layers/gemm.h"
#include "layers/vector_math.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kQueries = 64;
constexpr int64_t kKeys = 256;
constexpr int64_t kBlock = kQueries * kKeys;
static_assert(kKeys % kQueries == 0);

// What one thread holds of scores and their like: a few blocks that stay in the second-level cache.
float* thread_scratch() {
  thread_local std::vector<float> scratch(static_cast<size_t>(2 * kBlock));
  return scratch.data();
}

// One head of one sequence within the packed matrices.
template <class T>
struct Head {
  MatrixSlice<T> part(int64_t which, int64_t first, int64_t last) const {  // 0 queries, 1 keys, 2 values
    return {rows + first * stride + which * stride / 3, last - first, width, stride};
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

template <class T>
MatrixSlice<T> output_of(const AttentionShape& shape, Matrix<T> output, int64_t sequence, int64_t head, int64_t first,
                         int64_t last) {
  const int64_t width = output.size(1) / shape.heads;
  return {output.data() + (sequence * shape.context + first) * output.size(1) + head * width, last - first, width,
          output.size(1)};
}

float score_scale(int64_t width) {
  return 1.0F / std::sqrt(static_cast<float>(width));
}

int64_t mask_index(const AttentionShape& shape, int64_t pair, int64_t query, int64_t key) {
  return (pair * shape.context + query) * shape.context + key;
}

// The running softmax of one query: scores relative to `maximum`, their exponentials' sum, and the output so far.
struct OnlineSoftmax {
  float maximum = -std::numeric_limits<float>::infinity();
  float sum = 0.0F;

  // Takes in scores [0, seen), leaves their weights, zero up to `count`. Returns what earlier output must be scaled by.
  float take(float* scores, int64_t seen, int64_t count) {
    float top = maximum;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < seen; ++j) top = scores[j] > top ? scores[j] : top;
    float total = 0.0F;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < seen; ++j) {
      scores[j] = fast_exp(scores[j] - top);
      total += scores[j];
    }
    std::fill(scores + seen, scores + count, 0.0F);
    const float rescale = fast_exp(maximum - top);
    sum = sum * rescale + total;
    maximum = top;
    return rescale;
  }
};

void scale_row(float* row, int64_t width, float factor) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) row[j] *= factor;
}

void multiply_row(float* row, const float* factors, int64_t count) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) row[j] *= factors[j];
}

// Queries [first, last) of one head: output and log-sum-exp.
void forward_block(Stream& stream, const AttentionShape& shape, const Head<const float>& head, int64_t pair,
                   int64_t first, int64_t last, const Dropout& mask, MatrixSlice<float> output, float* logsumexp) {
  float* scores = thread_scratch();
  float factors[kKeys];
  OnlineSoftmax softmax[kQueries];
  for (int64_t key = 0; key < last; key += kKeys) {
    const int64_t keys = std::min(kKeys, last - key);
    const MatrixSlice<float> block(scores, last - first, keys, keys);
    PKM_CPU::gemm(stream, Transpose::kNo, Transpose::kYes, score_scale(head.width), head.part(0, first, last),
                  head.part(1, key, key + keys), 0.0F, block);
    for (int64_t query = first; query < last; ++query) {
      float* row = scores + (query - first) * keys;
      const int64_t seen = std::min(keys, query + 1 - key);
      const float rescale = softmax[query - first].take(row, seen, keys);
      if (key > 0) scale_row(output.data + (query - first) * output.stride, head.width, rescale);
      if (mask.probability > 0.0F) {
        dropout_factors(mask, mask_index(shape, pair, query, key), seen, factors);
        multiply_row(row, factors, seen);
      }
    }
    PKM_CPU::gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, block, head.part(2, key, key + keys),
                  key > 0 ? 1.0F : 0.0F, output);
  }
  for (int64_t i = 0; i < last - first; ++i) {
    scale_row(output.data + i * output.stride, head.width, 1.0F / softmax[i].sum);
    logsumexp[i] = softmax[i].maximum + std::log(softmax[i].sum);
  }
}

// One row of a block in the backward pass: from scores and weight gradients to what the gemms need.
// scores become weights after dropout; dweights, the gradients of those, become gradients of the scores.
void backward_row(float* scores, float* dweights, int64_t seen, int64_t count, float logsumexp, float output_dot,
                  const float* factors) {
  if (factors == nullptr) {
#pragma omp simd
    for (int64_t j = 0; j < seen; ++j) {
      const float weight = fast_exp(scores[j] - logsumexp);
      scores[j] = weight;
      dweights[j] = weight * (dweights[j] - output_dot);
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < seen; ++j) {
      const float weight = fast_exp(scores[j] - logsumexp);
      scores[j] = weight * factors[j];
      dweights[j] = weight * (dweights[j] * factors[j] - output_dot);
    }
  }
  std::fill(scores + seen, scores + count, 0.0F);
  std::fill(dweights + seen, dweights + count, 0.0F);
}

struct BackwardBlock {
  MatrixSlice<const float> output;
  MatrixSlice<const float> doutput;
  const float* logsumexp;
};

// Queries [first, last) of one head: their own gradient, and their shares of those of keys and values.
void backward_block(Stream& stream, const AttentionShape& shape, const Head<const float>& head, int64_t pair,
                    int64_t first, int64_t last, const BackwardBlock& in, const Dropout& mask,
                    const Head<float>& gradient) {
  float* scores = thread_scratch();
  float* dweights = scores + kBlock;
  float factors[kKeys];
  float output_dots[kQueries];  // sum over keys of weight * dweight = output . doutput (FlashAttention, appendix B)
  for (int64_t i = 0; i < last - first; ++i) {
    const float* left = in.output.data + i * in.output.stride;
    const float* right = in.doutput.data + i * in.doutput.stride;
    float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < head.width; ++j) sum += left[j] * right[j];
    output_dots[i] = sum;
  }
  const float scale = score_scale(head.width);
  for (int64_t key = 0; key < last; key += kKeys) {
    const int64_t keys = std::min(kKeys, last - key);
    const MatrixSlice<float> block(scores, last - first, keys, keys);
    const MatrixSlice<float> dblock(dweights, last - first, keys, keys);
    PKM_CPU::gemm(stream, Transpose::kNo, Transpose::kYes, scale, head.part(0, first, last),
                  head.part(1, key, key + keys), 0.0F, block);
    PKM_CPU::gemm(stream, Transpose::kNo, Transpose::kYes, 1.0F, in.doutput, head.part(2, key, key + keys), 0.0F,
                  dblock);
    for (int64_t query = first; query < last; ++query) {
      const int64_t i = query - first;
      const int64_t seen = std::min(keys, query + 1 - key);
      if (mask.probability > 0.0F) dropout_factors(mask, mask_index(shape, pair, query, key), seen, factors);
      backward_row(scores + i * keys, dweights + i * keys, seen, keys, in.logsumexp[i], output_dots[i],
                   mask.probability > 0.0F ? factors : nullptr);
    }
    PKM_CPU::gemm(stream, Transpose::kYes, Transpose::kNo, 1.0F, block, in.doutput, 1.0F,
                  gradient.part(2, key, key + keys));
    PKM_CPU::gemm(stream, Transpose::kNo, Transpose::kNo, scale, dblock, head.part(1, key, key + keys),
                  key > 0 ? 1.0F : 0.0F, gradient.part(0, first, last));
    PKM_CPU::gemm(stream, Transpose::kYes, Transpose::kNo, scale, dblock, head.part(0, first, last), 1.0F,
                  gradient.part(1, key, key + keys));
  }
}

}  // namespace

void attention_forward(Stream& stream, const AttentionShape& shape, Matrix<const float> qkv, const Dropout& mask,
                       Matrix<float> output, Matrix<float> logsumexp) {
  const MathScope exact(stream, Math::kFp32);  // blocks this small would not repay the rounding
  parallel_for(0, shape.sequences * shape.heads, 1, [&](int64_t from, int64_t to) {
    for (int64_t pair = from; pair < to; ++pair) {
      const int64_t sequence = pair / shape.heads;
      const int64_t head = pair % shape.heads;
      for (int64_t first = 0; first < shape.context; first += kQueries) {
        const int64_t last = std::min(first + kQueries, shape.context);
        forward_block(stream, shape, head_of(shape, qkv, sequence, head), pair, first, last, mask,
                      output_of(shape, output, sequence, head, first, last),
                      &logsumexp(head, sequence * shape.context + first));
      }
    }
  });
}

void attention_backward(Stream& stream, const AttentionShape& shape, Matrix<const float> qkv,
                        Matrix<const float> output, Matrix<const float> logsumexp, Matrix<const float> doutput,
                        const Dropout& mask, Matrix<float> dqkv) {
  const MathScope exact(stream, Math::kFp32);  // blocks this small would not repay the rounding
  parallel_for(0, shape.sequences * shape.heads, 1, [&](int64_t from, int64_t to) {
    for (int64_t pair = from; pair < to; ++pair) {
      const int64_t sequence = pair / shape.heads;
      const int64_t head = pair % shape.heads;
      const Head<float> gradient = head_of(shape, dqkv, sequence, head);
      for (const int64_t part : {1, 2})  // keys and values gather from all query blocks
        for (int64_t t = 0; t < shape.context; ++t)
          std::fill_n(gradient.part(part, t, t + 1).data, gradient.width, 0.0F);
      for (int64_t first = 0; first < shape.context; first += kQueries) {
        const int64_t last = std::min(first + kQueries, shape.context);
        const BackwardBlock in = {output_of(shape, output, sequence, head, first, last),
                                  output_of(shape, doutput, sequence, head, first, last),
                                  &logsumexp(head, sequence * shape.context + first)};
        backward_block(stream, shape, head_of(shape, qkv, sequence, head), pair, first, last, in, mask, gradient);
      }
    }
  });
}

}  // namespace pkmesh::PKM_CPU
