// SPDX-License-Identifier: Apache-2.0
#include "layers/silu_gate.h"
#include "layers/vector_math.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {
constexpr int64_t kGrain = 8192;  // elements worth a thread
}

void silu_gate_forward(Stream&, Matrix<const float> y, Matrix<const float> gate, Matrix<float> z) {
  const float* values = y.data();
  const float* gates = gate.data();
  float* out = z.data();
  parallel_for(0, y.count(), kGrain, [=](int64_t from, int64_t to) {
#pragma omp simd
    for (int64_t i = from; i < to; ++i) out[i] = values[i] * (gates[i] * fast_sigmoid(gates[i]));
  });
}

void silu_gate_backward(Stream&, Matrix<const float> y, Matrix<const float> gate, Matrix<const float> dz,
                        Matrix<float> dy, Matrix<float> dgate) {
  const float* values = y.data();
  const float* gates = gate.data();
  const float* gradient = dz.data();
  float* to_values = dy.data();
  float* to_gates = dgate.data();
  parallel_for(0, y.count(), kGrain, [=](int64_t from, int64_t to) {
#pragma omp simd
    for (int64_t i = from; i < to; ++i) {
      const float g = gates[i];
      const float sigmoid = fast_sigmoid(g);
      const float incoming = gradient[i];  // dy or dgate may lie where dz does
      const float value = values[i];
      to_values[i] = incoming * (g * sigmoid);
      to_gates[i] = incoming * value * (sigmoid * (1.0F + g * (1.0F - sigmoid)));
    }
  });
}

}  // namespace pkmesh::PKM_CPU
