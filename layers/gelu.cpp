// SPDX-License-Identifier: Apache-2.0
#include "layers/gelu.h"

#include "runtime/range.h"

namespace pkmesh {

void gelu_forward(Stream& stream, Matrix<const float> x, Matrix<float> y) {
  check_shape("gelu: y", y, {{"tokens", x.size(0)}, {"width", x.size(1)}});
  Range range("gelu_forward");
  PKM_DISPATCH(stream, gelu_forward, x, y);
}

void gelu_backward(Stream& stream, Matrix<const float> x, Matrix<const float> dy, Matrix<float> dx) {
  check_shape("gelu: dy", dy, {{"tokens", x.size(0)}, {"width", x.size(1)}});
  check_shape("gelu: dx", dx, {{"tokens", x.size(0)}, {"width", x.size(1)}});
  Range range("gelu_backward");
  PKM_DISPATCH(stream, gelu_backward, x, dy, dx);
}

}  // namespace pkmesh
