// SPDX-License-Identifier: Apache-2.0
#include "layers/dropout.h"

#include "runtime/range.h"

namespace pkmesh {

void dropout(Stream& stream, Matrix<const float> x, const Dropout& mask, Matrix<float> y) {
  PKM_CHECK(mask.probability >= 0.0F && mask.probability < 1.0F, "dropout: probability {} is not in [0, 1)",
            mask.probability);
  check_shape("dropout: y", y, {{"tokens", x.size(0)}, {"width", x.size(1)}});
  Range range("dropout");
  PKM_DISPATCH(stream, dropout, x, mask, y);
}

}  // namespace pkmesh
