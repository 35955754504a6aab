// SPDX-License-Identifier: Apache-2.0
#include "layers/linear.h"

#include "runtime/range.h"

namespace pkmesh {

void linear_forward(Stream& stream, Matrix<const float> x, Matrix<const float> weight, Vector<const float> bias,
                    Matrix<float> y) {
  check_shape("linear: x", x, {{"tokens", y.size(0)}, {"inputs", weight.size(1)}});
  check_shape("linear: y", y, {{"tokens", x.size(0)}, {"outputs", weight.size(0)}});
  if (!bias.empty()) check_shape("linear: bias", bias, {{"outputs", weight.size(0)}});
  Range range("linear_forward");
  PKM_DISPATCH(stream, linear_forward, x, weight, bias, y);
}

void linear_backward(Stream& stream, Matrix<const float> x, Matrix<const float> weight, Matrix<const float> dy,
                     Matrix<float> dx, Matrix<float> dweight, Vector<float> dbias) {
  check_shape("linear: x", x, {{"tokens", dy.size(0)}, {"inputs", weight.size(1)}});
  check_shape("linear: dy", dy, {{"tokens", x.size(0)}, {"outputs", weight.size(0)}});
  if (!dx.empty()) check_shape("linear: dx", dx, {{"tokens", x.size(0)}, {"inputs", weight.size(1)}});
  if (!dweight.empty())
    check_shape("linear: dweight", dweight, {{"outputs", weight.size(0)}, {"inputs", weight.size(1)}});
  if (!dbias.empty()) check_shape("linear: dbias", dbias, {{"outputs", weight.size(0)}});
  Range range("linear_backward");
  PKM_DISPATCH(stream, linear_backward, x, weight, dy, dx, dweight, dbias);
}

}  // namespace pkmesh
