// SPDX-License-Identifier: Apache-2.0
// For _cuda.cu files only: sums over whole arrays, in double and in an order that their length alone decides. Stage one
// sums each block's share into scratch, stage two sums the blocks' sums.
#pragma once

#include "runtime/cuda_kernel.h"

namespace pkmesh::cuda {

constexpr int kSumThreads = 256;

// Sums that stage one leaves.
inline int64_t partial_sums_of(int64_t count) {
  constexpr int64_t kBlockElements = 4096;  // worth a block
  constexpr int64_t kMostBlocks = 2048;
  return std::min(ceil_divide(count, kBlockElements), kMostBlocks);
}

struct Identity {
  __device__ double operator()(double value) const { return value; }
};

struct Square {
  __device__ double operator()(double value) const { return value * value; }
};

struct AddTo {
  double* total;
  __device__ void operator()(double sum) const { *total += sum; }
};

// partial[block] = sum of term(x[i]) over the block's share.
template <class T, class Term>
__global__ void partial_sums_kernel(const T* __restrict__ x, int64_t count, Term term, double* partial) {
  double sum = 0.0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kSumThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x; i < count; i += stride)
    sum += term(static_cast<double>(x[i]));
  sum = block_sum<kSumThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block, of which one thread calls finish(sum of partial).
template <class Finish>
__global__ void finish_sum_kernel(const double* partial, int64_t count, Finish finish) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += partial[i];
  sum = block_sum<kSumThreads>(sum);
  if (threadIdx.x == 0) finish(sum);
}

// Calls finish(sum of term(x[i]), i < count) on the device. partial: room for partial_sums_of(count).
template <class T, class Term, class Finish>
void sum_terms(Stream& stream, const T* x, int64_t count, const Term& term, double* partial, const Finish& finish) {
  const int64_t blocks = partial_sums_of(count);
  if (blocks > 0)
    partial_sums_kernel<<<static_cast<unsigned>(blocks), kSumThreads, 0, native(stream)>>>(x, count, term, partial);
  PKM_CUDA(cudaGetLastError());
  finish_sum_kernel<<<1, kSumThreads, 0, native(stream)>>>(partial, blocks, finish);
  PKM_CUDA(cudaGetLastError());
}

// *total += sum of term(x[i]), i < count. Takes the stream's scratch.
template <class T, class Term>
void add_terms(Stream& stream, const T* x, int64_t count, const Term& term, double* total) {
  if (count == 0) return;
  sum_terms(stream, x, count, term, scratch<double>(stream, partial_sums_of(count)), AddTo{total});
}

}  // namespace pkmesh::cuda
