// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "optim/adam.h"
#include "runtime/cuda_check.h"

namespace pkmesh::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 65536;

__global__ void adam_kernel(AdamCoefficients c, int64_t count, float* __restrict__ value,
                            const float* __restrict__ gradient, float* __restrict__ first, float* __restrict__ second) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const float g = c.scale * gradient[i];
    const float m = first[i] + (g - first[i]) * c.one_minus_beta1;
    const float v = c.beta2 * second[i] + c.one_minus_beta2 * g * g;
    first[i] = m;
    second[i] = v;
    value[i] = c.keep * value[i] - c.rate * m / (sqrtf(v) + c.eps);
  }
}

}  // namespace

void adam_update(Stream& stream, const AdamCoefficients& coefficients, Vector<float> values,
                 Vector<const float> gradients, Vector<float> first_moments, Vector<float> second_moments) {
  const int64_t blocks = std::min((values.count() + kThreads - 1) / kThreads, kMostBlocks);
  adam_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream.native())>>>(
      coefficients, values.count(), values.data(), gradients.data(), first_moments.data(), second_moments.data());
  PKM_CUDA(cudaGetLastError());
}

}  // namespace pkmesh::cuda
