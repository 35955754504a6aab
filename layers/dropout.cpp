// SPDX-License-Identifier: Apache-2.0
#include "layers/dropout.h"

#include "runtime/range.h"

namespace pkmesh {
namespace {

void check_mask(const Dropout& mask) {
  PKM_CHECK(mask.probability >= 0.0F && mask.probability < 1.0F, "dropout: probability {} is not in [0, 1)",
            mask.probability);
}

}  // namespace

void dropout(Stream& stream, Matrix<const float> x, const Dropout& mask, Matrix<float> y) {
  check_mask(mask);
  check_shape("dropout: y", y, {{"tokens", x.size(0)}, {"width", x.size(1)}});
  Range range("dropout");
  PKM_DISPATCH(stream, dropout, x, mask, y);
}

void dropout_add(Stream& stream, Matrix<const float> x, const Dropout& mask, Matrix<const float> residual,
                 Matrix<float> y) {
  check_mask(mask);
  check_shape("dropout_add: residual", residual, {{"tokens", x.size(0)}, {"width", x.size(1)}});
  check_shape("dropout_add: y", y, {{"tokens", x.size(0)}, {"width", x.size(1)}});
  Range range("dropout_add");
  PKM_DISPATCH(stream, dropout_add, x, mask, residual, y);
}

}  // namespace pkmesh
