// SPDX-License-Identifier: Apache-2.0
#include "layers/gelu.h"
#include "runtime/cuda_kernel.h"

namespace pkmesh::cuda {
namespace {

struct Forward {
  const float* x;
  float* y;
  __device__ void operator()(int64_t i) const { y[i] = x[i] * normcdff(x[i]); }
};

struct Backward {
  const float* x;
  const float* dy;
  float* dx;
  __device__ void operator()(int64_t i) const {
    const float at = x[i];
    const float density = 0.398942280F * expf(-0.5F * at * at);
    dx[i] = dy[i] * (normcdff(at) + at * density);
  }
};

}  // namespace

void gelu_forward(Stream& stream, Matrix<const float> x, Matrix<float> y) {
  for_each(stream, x.count(), Forward{x.data(), y.data()});
}

void gelu_backward(Stream& stream, Matrix<const float> x, Matrix<const float> dy, Matrix<float> dx) {
  for_each(stream, x.count(), Backward{x.data(), dy.data(), dx.data()});
}

}  // namespace pkmesh::cuda
