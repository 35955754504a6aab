// SPDX-License-Identifier: Apache-2.0
// One launch for all dense parameters: a thread finds by bisection whether its first element decays, and walks the
// bounds from there.
#include <algorithm>

#include "optim/adam.h"
#include "runtime/cuda_kernel.h"

namespace pkmesh::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSpan = 4096;  // consecutive elements of a block
constexpr int64_t kMostBlocks = 65536;

// The number of bounds that are not behind i: odd inside a decayed range.
__device__ int64_t bounds_before(const int64_t* decayed, int64_t count, int64_t i) {
  int64_t low = 0;
  int64_t high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (decayed[middle] <= i)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

__global__ void __launch_bounds__(kThreads)
    adam_kernel(AdamCoefficients c, const int64_t* __restrict__ decayed, int64_t bounds, int64_t count,
                float* __restrict__ value, const float* __restrict__ gradient, float* __restrict__ first,
                float* __restrict__ second) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kSpan;
  for (int64_t span = static_cast<int64_t>(blockIdx.x) * kSpan; span < count; span += stride) {
    int64_t before = bounds_before(decayed, bounds, span + threadIdx.x);
    const int64_t end = span + kSpan < count ? span + kSpan : count;
    for (int64_t i = span + threadIdx.x; i < end; i += kThreads) {
      while (before < bounds && decayed[before] <= i) ++before;
      const float keep = before % 2 == 0 ? 1.0F : c.keep;
      const float g = c.scale * gradient[i];
      const float m = first[i] + (g - first[i]) * c.one_minus_beta1;
      const float v = c.beta2 * second[i] + c.one_minus_beta2 * g * g;
      first[i] = m;
      second[i] = v;
      value[i] = keep * value[i] - c.rate * m / (sqrtf(v) + c.eps);
    }
  }
}

}  // namespace

void adam_update(Stream& stream, const AdamCoefficients& coefficients, Vector<const int64_t> decayed,
                 Vector<float> values, Vector<const float> gradients, Vector<float> first_moments,
                 Vector<float> second_moments) {
  const int64_t blocks = std::min(ceil_divide(values.count(), kSpan), kMostBlocks);
  adam_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, native(stream)>>>(
      coefficients, decayed.data(), decayed.count(), values.count(), values.data(), gradients.data(),
      first_moments.data(), second_moments.data());
  PKM_CUDA(cudaGetLastError());
}

}  // namespace pkmesh::cuda
