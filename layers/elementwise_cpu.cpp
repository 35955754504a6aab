// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "layers/elementwise.h"
#include "runtime/parallel.h"

namespace pkmesh::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth a thread
constexpr int64_t kBlock = 4096;   // elements of one partial sum

// total += sum of block_sum(begin, end) over blocks of kBlock elements, in their order.
template <class BlockSum>
void add_blocks(int64_t count, double& total, const BlockSum& block_sum) {
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  thread_local std::vector<double> memory;
  memory.resize(static_cast<size_t>(blocks));
  double* partial = memory.data();
  parallel_for(0, blocks, kGrain / kBlock, [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) partial[b] = block_sum(b * kBlock, std::min((b + 1) * kBlock, count));
  });
  for (int64_t b = 0; b < blocks; ++b) total += partial[b];
}

}  // namespace

void fill(Stream&, Vector<float> x, float value) {
  float* out = x.data();
  parallel_for(0, x.count(), kGrain, [=](int64_t from, int64_t to) { std::fill(out + from, out + to, value); });
}

void add(Stream&, Vector<const float> a, Vector<const float> b, Vector<float> y) {
  const float* left = a.data();
  const float* right = b.data();
  float* out = y.data();
  parallel_for(0, y.count(), kGrain, [=](int64_t from, int64_t to) {
#pragma omp simd
    for (int64_t i = from; i < to; ++i) out[i] = left[i] + right[i];
  });
}

void scale(Stream&, Vector<float> x, float factor) {
  float* out = x.data();
  parallel_for(0, x.count(), kGrain, [=](int64_t from, int64_t to) {
#pragma omp simd
    for (int64_t i = from; i < to; ++i) out[i] *= factor;
  });
}

void add_sum(Stream&, Vector<const float> x, Vector<double> total) {
  const float* in = x.data();
  add_blocks(x.count(), total[0], [=](int64_t from, int64_t to) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = from; i < to; ++i) sum += static_cast<double>(in[i]);
    return sum;
  });
}

void add_sum_of_squares(Stream&, Vector<const float> x, Vector<double> total) {
  const float* in = x.data();
  add_blocks(x.count(), total[0], [=](int64_t from, int64_t to) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = from; i < to; ++i) sum += static_cast<double>(in[i]) * static_cast<double>(in[i]);
    return sum;
  });
}

}  // namespace pkmesh::cpu
