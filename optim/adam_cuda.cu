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

__global__ void __launch_bounds__(kThreads)
    adam_kernel(AdamCoefficients c, const int64_t* __restrict__ decayed, int64_t bounds, int64_t count,
                float* __restrict__ value, const float* __restrict__ gradient, float* __restrict__ first,
                float* __restrict__ second) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kSpan;
  for (int64_t span = static_cast<int64_t>(blockIdx.x) * kSpan; span < count; span += stride) {
    // The number of bounds that are not behind i: odd inside a decayed range.
    int64_t before = lower_bound(0, bounds, [&](int64_t b) { return decayed[b] <= span + threadIdx.x; });
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
