// SPDX-License-Identifier: Apache-2.0
// One block per (sequence, head). Its warps walk over the positions in turns, each with a softmax of its own; these are
// joined in the order of the warps.
#include <cmath>

#include "layers/attention.h"
#include "layers/attention_decode.h"
#include "runtime/cuda_kernel.h"

namespace pkmesh::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kColumns = static_cast<int>(kMostGpuHeadWidth) / kWarp;  // that a lane holds

// i runs over (sequences, width).
struct Append {
  int64_t capacity, width;
  const float* qkv;
  const int32_t* positions;
  float* keys;
  float* values;
  __device__ void operator()(int64_t i) const {
    const int64_t s = i / width;
    const int64_t column = i % width;
    check_index("attention_decode: position", positions[s], capacity);
    const int64_t to = (s * capacity + positions[s]) * width + column;
    keys[to] = qkv[(3 * s + 1) * width + column];
    values[to] = qkv[(3 * s + 2) * width + column];
  }
};

// A softmax over some positions: the highest score, the sum of exp(score - top), and the values summed with them.
struct Partial {
  float top = -INFINITY;
  float sum = 0.0F;
  float output[kColumns] = {};  // columns lane + 32 c
};

// Positions warp, warp + kWarps, ... of [0, count).
__device__ Partial attend(const float* query, const float* keys, const float* values, int64_t count, int64_t stride,
                          int64_t width, float scale) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Partial partial;
  float q[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) q[c] = lane + kWarp * c < width ? query[lane + kWarp * c] : 0.0F;
  for (int64_t position = threadIdx.x / kWarp; position < count; position += kWarps) {
    const float* key = keys + position * stride;
    const float* value = values + position * stride;
    float dot = 0.0F;
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      if (lane + kWarp * c < width) dot += q[c] * key[lane + kWarp * c];
    const float score = lanes_sum(dot) * scale;
    const float top = fmaxf(partial.top, score);
    const float rescale = expf(partial.top - top);
    const float weight = expf(score - top);
    partial.top = top;
    partial.sum = partial.sum * rescale + weight;
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      if (lane + kWarp * c < width) partial.output[c] = partial.output[c] * rescale + weight * value[lane + kWarp * c];
  }
  return partial;
}

__global__ void __launch_bounds__(kWarps* kWarp)
    decode_kernel(const float* qkv, const int32_t* positions, const float* keys, const float* values, int64_t heads,
                  int64_t capacity, int64_t width, float scale, float* output) {
  __shared__ float tops[kWarps];
  __shared__ float sums[kWarps];
  __shared__ float outputs[kWarps][kMostGpuHeadWidth];
  const int64_t s = blockIdx.x / heads;
  const int64_t stride = heads * width;
  const int64_t column = blockIdx.x % heads * width;
  const int64_t cache = s * capacity * stride + column;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Partial own = attend(qkv + s * 3 * stride + column, keys + cache, values + cache,
                             static_cast<int64_t>(positions[s]) + 1, stride, width, scale);
  if (lane == 0) {
    tops[warp] = own.top;
    sums[warp] = own.sum;
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) outputs[warp][lane + kWarp * c] = own.output[c];
  __syncthreads();
  float top = tops[0];  // finite: the first warp has position 0
  for (int w = 1; w < kWarps; ++w) top = fmaxf(top, tops[w]);
  float sum = 0.0F;
  for (int w = 0; w < kWarps; ++w) sum += sums[w] * expf(tops[w] - top);
  for (int64_t j = threadIdx.x; j < width; j += kWarps * kWarp) {
    float total = 0.0F;
    for (int w = 0; w < kWarps; ++w) total += outputs[w][j] * expf(tops[w] - top);
    output[s * stride + column + j] = total / sum;
  }
}

}  // namespace

void attention_decode(Stream& stream, int64_t heads, Matrix<const float> qkv, Vector<const int32_t> positions,
                      View<float, 3> key_cache, View<float, 3> value_cache, Matrix<float> output) {
  if (output.empty()) return;
  const int64_t sequences = qkv.size(0);
  const int64_t capacity = key_cache.size(1);
  const int64_t width = output.size(1) / heads;
  if (width > kMostGpuHeadWidth)
    user_error("attention: a head is {} wide, on a CUDA device {} at most; set more heads, or device: CPU", width,
               kMostGpuHeadWidth);
  for_each(stream, sequences * output.size(1),
           Append{capacity, output.size(1), qkv.data(), positions.data(), key_cache.data(), value_cache.data()});
  decode_kernel<<<static_cast<unsigned>(sequences * heads), kWarps * kWarp, 0, native(stream)>>>(
      qkv.data(), positions.data(), key_cache.data(), value_cache.data(), heads, capacity, width,
      1.0F / std::sqrt(static_cast<float>(width)), output.data());
  PKM_CUDA(cudaGetLastError());
}

}  // namespace pkmesh::cuda
