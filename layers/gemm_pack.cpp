// SPDX-License-Identifier: Apache-2.0
#include "layers/gemm_pack.h"

namespace pkmesh {

void pack_rows(Stream& stream, MatrixSlice<const float> matrix, Transpose transpose, const PackedRange& range,
               uint16_t* out) {
  PKM_DISPATCH(stream, pack_rows, matrix, transpose, range, out);
}

void pack_panels(Stream& stream, MatrixSlice<const float> matrix, Transpose transpose, const PackedRange& range,
                 uint32_t* out) {
  PKM_DISPATCH(stream, pack_panels, matrix, transpose, range, out);
}

}  // namespace pkmesh
