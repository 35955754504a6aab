// SPDX-License-Identifier: Apache-2.0
#include "layers/elementwise.h"
#include "runtime/cuda_kernel.h"

namespace pkmesh::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlockElements = 4096;  // worth a block
constexpr int64_t kMostBlocks = 2048;

struct Fill {
  float value;
  float* x;
  __device__ void operator()(int64_t i) const { x[i] = value; }
};

struct Add {
  const float* a;
  const float* b;
  float* y;
  __device__ void operator()(int64_t i) const { y[i] = a[i] + b[i]; }
};

struct Identity {
  __device__ double operator()(double value) const { return value; }
};

struct Square {
  __device__ double operator()(double value) const { return value * value; }
};

// partial[block] = sum of term(x[i]) over the block's share. Who sums what depends on the count alone.
template <class Term>
__global__ void partial_sums_kernel(const float* __restrict__ x, int64_t count, Term term, double* partial) {
  double sum = 0.0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride)
    sum += term(static_cast<double>(x[i]));
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block.
__global__ void add_partial_sums_kernel(const double* partial, int64_t count, double* total) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) *total += sum;
}

template <class Term>
void add_terms(Stream& stream, Vector<const float> x, Vector<double> total, const Term& term) {
  if (x.empty()) return;
  const int64_t blocks = std::min(ceil_divide(x.count(), kBlockElements), kMostBlocks);
  double* partial = scratch<double>(stream, blocks);
  partial_sums_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, native(stream)>>>(x.data(), x.count(), term,
                                                                                      partial);
  PKM_CUDA(cudaGetLastError());
  add_partial_sums_kernel<<<1, kThreads, 0, native(stream)>>>(partial, blocks, total.data());
  PKM_CUDA(cudaGetLastError());
}

}  // namespace

void fill(Stream& stream, Vector<float> x, float value) {
  for_each(stream, x.count(), Fill{value, x.data()});
}

void add(Stream& stream, Vector<const float> a, Vector<const float> b, Vector<float> y) {
  for_each(stream, y.count(), Add{a.data(), b.data(), y.data()});
}

void add_sum(Stream& stream, Vector<const float> x, Vector<double> total) {
  add_terms(stream, x, total, Identity{});
}

void add_sum_of_squares(Stream& stream, Vector<const float> x, Vector<double> total) {
  add_terms(stream, x, total, Square{});
}

}  // namespace pkmesh::cuda
