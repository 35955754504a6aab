// SPDX-License-Identifier: Apache-2.0
#include "layers/silu_gate.h"

#include "runtime/range.h"

namespace pkmesh {

void silu_gate_forward(Stream& stream, Matrix<const float> y, Matrix<const float> gate, Matrix<float> z) {
  check_shape("silu_gate: gate", gate, {{"tokens", y.size(0)}, {"width", y.size(1)}});
  check_shape("silu_gate: z", z, {{"tokens", y.size(0)}, {"width", y.size(1)}});
  Range range("silu_gate_forward");
  PKM_DISPATCH(stream, silu_gate_forward, y, gate, z);
}

void silu_gate_backward(Stream& stream, Matrix<const float> y, Matrix<const float> gate, Matrix<const float> dz,
                        Matrix<float> dy, Matrix<float> dgate) {
  check_shape("silu_gate: gate", gate, {{"tokens", y.size(0)}, {"width", y.size(1)}});
  check_shape("silu_gate: dz", dz, {{"tokens", y.size(0)}, {"width", y.size(1)}});
  check_shape("silu_gate: dy", dy, {{"tokens", y.size(0)}, {"width", y.size(1)}});
  check_shape("silu_gate: dgate", dgate, {{"tokens", y.size(0)}, {"width", y.size(1)}});
  Range range("silu_gate_backward");
  PKM_DISPATCH(stream, silu_gate_backward, y, gate, dz, dy, dgate);
}

}  // namespace pkmesh
