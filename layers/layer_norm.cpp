// SPDX-License-Identifier: Apache-2.0
#include "layers/layer_norm.h"

#include "runtime/range.h"

namespace pkmesh {

void layer_norm_forward(Stream& stream, Matrix<const float> x, Vector<const float> gamma, Vector<const float> beta,
                        float epsilon, Matrix<float> y, Vector<float> mean, Vector<float> rstd) {
  const Extent tokens = {"tokens", x.size(0)};
  const Extent width = {"width", x.size(1)};
  check_shape("layer_norm: gamma", gamma, {width});
  check_shape("layer_norm: beta", beta, {width});
  check_shape("layer_norm: y", y, {tokens, width});
  check_shape("layer_norm: mean", mean, {tokens});
  check_shape("layer_norm: rstd", rstd, {tokens});
  Range range("layer_norm_forward");
  PKM_DISPATCH(stream, layer_norm_forward, x, gamma, beta, epsilon, y, mean, rstd);
}

void residual_layer_norm_forward(Stream& stream, Matrix<const float> a, Matrix<const float> b,
                                 Vector<const float> gamma, Vector<const float> beta, float epsilon, Matrix<float> sum,
                                 Matrix<float> y, Vector<float> mean, Vector<float> rstd) {
  const Extent tokens = {"tokens", a.size(0)};
  const Extent width = {"width", a.size(1)};
  check_shape("layer_norm: b", b, {tokens, width});
  check_shape("layer_norm: gamma", gamma, {width});
  check_shape("layer_norm: beta", beta, {width});
  check_shape("layer_norm: sum", sum, {tokens, width});
  check_shape("layer_norm: y", y, {tokens, width});
  check_shape("layer_norm: mean", mean, {tokens});
  check_shape("layer_norm: rstd", rstd, {tokens});
  Range range("residual_layer_norm_forward");
  PKM_DISPATCH(stream, residual_layer_norm_forward, a, b, gamma, beta, epsilon, sum, y, mean, rstd);
}

void layer_norm_backward(Stream& stream, Matrix<const float> x, Vector<const float> gamma, Vector<const float> mean,
                         Vector<const float> rstd, Matrix<const float> dy, Matrix<const float> dskip, Matrix<float> dx,
                         Vector<float> dgamma, Vector<float> dbeta) {
  const Extent tokens = {"tokens", x.size(0)};
  const Extent width = {"width", x.size(1)};
  check_shape("layer_norm: gamma", gamma, {width});
  check_shape("layer_norm: mean", mean, {tokens});
  check_shape("layer_norm: rstd", rstd, {tokens});
  check_shape("layer_norm: dy", dy, {tokens, width});
  if (!dskip.empty()) check_shape("layer_norm: dskip", dskip, {tokens, width});
  check_shape("layer_norm: dx", dx, {tokens, width});
  check_shape("layer_norm: dgamma", dgamma, {width});
  check_shape("layer_norm: dbeta", dbeta, {width});
  Range range("layer_norm_backward");
  PKM_DISPATCH(stream, layer_norm_backward, x, gamma, mean, rstd, dy, dskip, dx, dgamma, dbeta);
}

}  // namespace pkmesh
