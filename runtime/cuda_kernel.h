// SPDX-License-Identifier: Apache-2.0
// For _cuda.cu files only: launches over elements, and sums over warps and blocks whose order is fixed by the shape, so
// that results repeat bit for bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "runtime/cuda_check.h"
#include "runtime/cuda_stream.h"

namespace pkmesh::cuda {

constexpr int kWarp = 32;

inline int64_t ceil_divide(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <class Body>
__global__ void for_each_kernel(int64_t count, Body body) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) body(i);
}

// body(i) for each i in [0, count), in any order. A body is a struct of pointers and numbers with a
// `__device__ void operator()(int64_t i) const`.
template <class Body>
void for_each(Stream& stream, int64_t count, const Body& body) {
  constexpr int kThreads = 256;
  if (count <= 0) return;
  const int64_t blocks = std::min<int64_t>(ceil_divide(count, kThreads), 65536);
  for_each_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, native(stream)>>>(count, body);
  PKM_CUDA(cudaGetLastError());
}

// The first i in [low, high) for which is_below(i) does not hold, or high; before it, it holds, and behind it never.
template <class IsBelow>
__device__ int64_t lower_bound(int64_t low, int64_t high, const IsBelow& is_below) {
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (is_below(middle))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Ends the kernel unless 0 <= index < count: the next CUDA call then throws. The CPU's PKM_CHECK, on the device.
__device__ inline void check_index(const char* what, int64_t index, int64_t count) {
  if (index >= 0 && index < count) return;
  printf("%s: %lld is outside [0, %lld)\n", what, static_cast<long long>(index), static_cast<long long>(count));
  __trap();
}

// The sum (maximum) over `kLanes` neighbouring lanes, in each of them: 32 for a warp, 16 for half of one. All lanes of
// the warp must call it.
template <int kLanes = kWarp, class T>
__device__ T lanes_sum(T value) {
  for (int distance = kLanes / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xFFFFFFFFU, value, distance);
  return value;
}

template <int kLanes = kWarp>
__device__ inline float lanes_max(float value) {
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFU, value, distance));
  return value;
}

// The sum (maximum) over a block of kThreads threads in one dimension, in each of them. All threads must call it.
template <int kThreads, class T>
__device__ T block_sum(T value) {
  __shared__ T sums[kThreads / kWarp];
  value = lanes_sum(value);
  __syncthreads();  // nobody reads the former sums any more
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = sums[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) total += sums[warp];
  return total;
}

template <int kThreads>
__device__ float block_max(float value) {
  __shared__ float tops[kThreads / kWarp];
  value = lanes_max(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) tops[threadIdx.x / kWarp] = value;
  __syncthreads();
  float top = tops[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) top = fmaxf(top, tops[warp]);
  return top;
}

}  // namespace pkmesh::cuda
