// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "layers/attention_decode.h"
#include "layers/vector_math.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

void copy_key_and_value(const float* qkv, int64_t width, float* key, float* value) {
  std::copy_n(qkv + width, width, key);
  std::copy_n(qkv + 2 * width, width, value);
}

// One query against `count` keys and values, `stride` apart: softmax(query . keys / sqrt(width)) values.
void attend(const float* query, const float* keys, const float* values, int64_t count, int64_t stride, int64_t width,
            float* output) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < count) memory.resize(static_cast<size_t>(2 * count));
  float* weights = memory.data();
  const float scale = 1.0F / std::sqrt(static_cast<float>(width));
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t p = 0; p < count; ++p) {
    const float* key = keys + p * stride;
    float score = 0.0F;
#pragma omp simd reduction(+ : score)
    for (int64_t j = 0; j < width; ++j) score += query[j] * key[j];
    weights[p] = score * scale;
    top = std::max(top, weights[p]);
  }
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (int64_t p = 0; p < count; ++p) {
    weights[p] = fast_exp(weights[p] - top);
    sum += weights[p];
  }
  std::fill_n(output, width, 0.0F);
  for (int64_t p = 0; p < count; ++p) {
    const float* value = values + p * stride;
    const float weight = weights[p] / sum;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) output[j] += weight * value[j];
  }
}

}  // namespace

void attention_decode(Stream&, int64_t heads, Matrix<const float> qkv, Vector<const int32_t> positions,
                      View<float, 3> key_cache, View<float, 3> value_cache, Matrix<float> output) {
  const int64_t width = output.size(1);
  for (int64_t s = 0; s < qkv.size(0); ++s) {
    PKM_CHECK(positions[s] >= 0 && positions[s] < key_cache.size(1),
              "attention_decode: position {} of sequence {} is outside the cache of {}", positions[s], s,
              key_cache.size(1));
    copy_key_and_value(qkv[s].data(), width, &key_cache(s, positions[s], 0), &value_cache(s, positions[s], 0));
  }
  const int64_t head_width = width / heads;
  parallel_for(0, qkv.size(0) * heads, 1, [&](int64_t from, int64_t to) {
    for (int64_t pair = from; pair < to; ++pair) {
      const int64_t s = pair / heads;
      const int64_t column = pair % heads * head_width;
      attend(&qkv(s, column), &key_cache(s, 0, column), &value_cache(s, 0, column), positions[s] + 1, width, head_width,
             &output(s, column));
    }
  });
}

}  // namespace pkmesh::PKM_CPU
