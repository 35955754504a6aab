// SPDX-License-Identifier: Apache-2.0
#include "layers/gelu.h"
#include "layers/vector_math.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {
constexpr int64_t kGrain = 8192;  // elements worth a thread
}

void gelu_forward(Stream&, Matrix<const float> x, Matrix<float> y) {
  const float* in = x.data();
  float* out = y.data();
  parallel_for(0, x.count(), kGrain, [=](int64_t from, int64_t to) {
#pragma omp simd
    for (int64_t i = from; i < to; ++i) out[i] = in[i] * fast_normal(in[i]).cumulative;
  });
}

void gelu_backward(Stream&, Matrix<const float> x, Matrix<const float> dy, Matrix<float> dx) {
  const float* in = x.data();
  const float* gradient = dy.data();
  float* out = dx.data();
  parallel_for(0, x.count(), kGrain, [=](int64_t from, int64_t to) {
#pragma omp simd
    for (int64_t i = from; i < to; ++i) {
      const Normal normal = fast_normal(in[i]);
      out[i] = gradient[i] * (normal.cumulative + in[i] * normal.density);
    }
  });
}

}  // namespace pkmesh::PKM_CPU
