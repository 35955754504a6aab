// SPDX-License-Identifier: Apache-2.0
#include "layers/gemm.h"

#include "runtime/range.h"

namespace pkmesh {

void gemm(Stream& stream, Transpose transpose_a, Transpose transpose_b, float alpha, MatrixSlice<const float> a,
          MatrixSlice<const float> b, float beta, MatrixSlice<float> c) {
  const bool a_flips = transpose_a == Transpose::kYes;
  const bool b_flips = transpose_b == Transpose::kYes;
  const int64_t inner = a_flips ? a.rows : a.columns;
  PKM_CHECK((a_flips ? a.columns : a.rows) == c.rows && (b_flips ? b.rows : b.columns) == c.columns &&
                (b_flips ? b.columns : b.rows) == inner,
            "gemm: a ({}, {}){} times b ({}, {}){} does not give c ({}, {})", a.rows, a.columns,
            a_flips ? " transposed" : "", b.rows, b.columns, b_flips ? " transposed" : "", c.rows, c.columns);
  PKM_CHECK(a.stride >= a.columns && b.stride >= b.columns && c.stride >= c.columns,
            "gemm: rows overlap: strides {}, {}, {} for {}, {}, {} columns", a.stride, b.stride, c.stride, a.columns,
            b.columns, c.columns);
  Range range("gemm");
  PKM_DISPATCH(stream, gemm, transpose_a, transpose_b, alpha, a, b, beta, c);
}

}  // namespace pkmesh
