// SPDX-License-Identifier: Apache-2.0
#include <cblas.h>

#include <algorithm>
#include <limits>

#include "layers/gemm.h"

namespace pkmesh::PKM_CPU {
namespace {

// BLAS counts in its own integer type, 32 bits wide in Debian's packages.
blasint narrow(int64_t size) {
  PKM_CHECK(size >= 0 && size <= std::numeric_limits<blasint>::max(), "gemm: BLAS cannot count to {}", size);
  return static_cast<blasint>(size);
}

CBLAS_TRANSPOSE blas_transpose(Transpose transpose) {
  return transpose == Transpose::kYes ? CblasTrans : CblasNoTrans;
}

}  // namespace

void gemm(Stream&, Transpose transpose_a, Transpose transpose_b, float alpha, MatrixSlice<const float> a,
          MatrixSlice<const float> b, float beta, MatrixSlice<float> c) {
  if (c.rows == 0 || c.columns == 0) return;
  const int64_t inner = transpose_a == Transpose::kYes ? a.rows : a.columns;
  // BLAS wants strides of at least 1, even of matrices that it does not read.
  cblas_sgemm(CblasRowMajor, blas_transpose(transpose_a), blas_transpose(transpose_b), narrow(c.rows),
              narrow(c.columns), narrow(inner), alpha, a.data, std::max<blasint>(1, narrow(a.stride)), b.data,
              std::max<blasint>(1, narrow(b.stride)), beta, c.data, narrow(c.stride));
}

}  // namespace pkmesh::PKM_CPU
