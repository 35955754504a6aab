// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "layers/elementwise.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth a thread
constexpr int64_t kBlock = 4096;   // elements of one partial sum

// Sum of term(x[i]) over at most kBlock elements, in independent lanes: one sum would wait for each addition.
template <class Term>
double block_sum(const float* x, int64_t count, const Term& term) {
  constexpr int64_t kLanes = 32;
  double lanes[kLanes] = {};
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(static_cast<double>(x[i + lane]));
  double sum = 0.0;
  for (int64_t i = whole; i < count; ++i) sum += term(static_cast<double>(x[i]));
  for (const double lane : lanes) sum += lane;
  return sum;
}

// total += sum of term(x[i]): blocks of kBlock elements, then their sums in order.
template <class Term>
void add_blocks(Vector<const float> x, double& total, const Term& term) {
  const int64_t count = x.count();
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  thread_local std::vector<double> memory;
  memory.resize(static_cast<size_t>(blocks));
  double* partial = memory.data();
  parallel_for(0, blocks, kGrain / kBlock, [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b)
      partial[b] = block_sum(x.data() + b * kBlock, std::min(kBlock, count - b * kBlock), term);
  });
  for (int64_t b = 0; b < blocks; ++b) total += partial[b];
}

template <class From, class To>
void convert(Vector<const From> x, Vector<To> y) {
  const From* in = x.data();
  To* out = y.data();
  parallel_for(0, y.count(), kGrain, [=](int64_t from, int64_t to) {
#pragma omp simd
    for (int64_t i = from; i < to; ++i) out[i] = To(in[i]);
  });
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

void narrow(Stream&, Vector<const float> x, Vector<bf16> y) {
  convert(x, y);
}

void widen(Stream&, Vector<const bf16> x, Vector<float> y) {
  convert(x, y);
}

void add_sum(Stream&, Vector<const float> x, Vector<double> total) {
  add_blocks(x, total[0], [](double value) { return value; });
}

void add_sum_of_squares(Stream&, Vector<const float> x, Vector<double> total) {
  add_blocks(x, total[0], [](double value) { return value * value; });
}

}  // namespace pkmesh::PKM_CPU
