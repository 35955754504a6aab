// SPDX-License-Identifier: Apache-2.0
#include "layers/silu_gate.h"
#include "runtime/cuda_kernel.h"

namespace pkmesh::cuda {
namespace {

__device__ float sigmoid(float x) {
  return 1.0F / (1.0F + expf(-x));
}

struct Forward {
  const float* y;
  const float* gate;
  float* z;
  __device__ void operator()(int64_t i) const {
    const float g = gate[i];
    z[i] = y[i] * (g * sigmoid(g));
  }
};

struct Backward {
  const float* y;
  const float* gate;
  const float* dz;
  float* dy;
  float* dgate;
  __device__ void operator()(int64_t i) const {
    const float g = gate[i];
    const float incoming = dz[i];  // dy or dgate may lie where dz does
    const float value = y[i];
    const float s = sigmoid(g);
    dy[i] = incoming * (g * s);
    dgate[i] = incoming * value * (s * (1.0F + g * (1.0F - s)));
  }
};

}  // namespace

void silu_gate_forward(Stream& stream, Matrix<const float> y, Matrix<const float> gate, Matrix<float> z) {
  for_each(stream, y.count(), Forward{y.data(), gate.data(), z.data()});
}

void silu_gate_backward(Stream& stream, Matrix<const float> y, Matrix<const float> gate, Matrix<const float> dz,
                        Matrix<float> dy, Matrix<float> dgate) {
  for_each(stream, y.count(), Backward{y.data(), gate.data(), dz.data(), dy.data(), dgate.data()});
}

}  // namespace pkmesh::cuda
