// SPDX-License-Identifier: Apache-2.0
#include "layers/elementwise.h"
#include "layers/sums_cuda.h"

namespace pkmesh::cuda {
namespace {

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

template <class From, class To>
struct Convert {
  const From* x;
  To* y;
  __device__ void operator()(int64_t i) const { y[i] = To(x[i]); }
};

}  // namespace

void fill(Stream& stream, Vector<float> x, float value) {
  for_each(stream, x.count(), Fill{value, x.data()});
}

void add(Stream& stream, Vector<const float> a, Vector<const float> b, Vector<float> y) {
  for_each(stream, y.count(), Add{a.data(), b.data(), y.data()});
}

void narrow(Stream& stream, Vector<const float> x, Vector<bf16> y) {
  for_each(stream, y.count(), Convert<float, bf16>{x.data(), y.data()});
}

void widen(Stream& stream, Vector<const bf16> x, Vector<float> y) {
  for_each(stream, y.count(), Convert<bf16, float>{x.data(), y.data()});
}

void add_sum(Stream& stream, Vector<const float> x, Vector<double> total) {
  add_terms(stream, x.data(), x.count(), Identity{}, total.data());
}

void add_sum_of_squares(Stream& stream, Vector<const float> x, Vector<double> total) {
  add_terms(stream, x.data(), x.count(), Square{}, total.data());
}

}  // namespace pkmesh::cuda
