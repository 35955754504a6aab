// SPDX-License-Identifier: Apache-2.0
// Matrix products, of the kind that the stream's math() names.
#pragma once

#include <type_traits>

#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

// A rectangle of a row-major matrix: consecutive rows lie `stride` elements apart. Every Matrix is one.
template <class T>
struct MatrixSlice {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;

  MatrixSlice(T* first, int64_t row_count, int64_t column_count, int64_t row_stride)
      : data(first), rows(row_count), columns(column_count), stride(row_stride) {}
  MatrixSlice(Matrix<T> matrix) : MatrixSlice(matrix.data(), matrix.size(0), matrix.size(1), matrix.size(1)) {}
  MatrixSlice(Matrix<std::remove_const_t<T>> matrix) requires(std::is_const_v<T>) : MatrixSlice(Matrix<T>(matrix)) {}
  operator MatrixSlice<const T>() const requires(!std::is_const_v<T>) { return {data, rows, columns, stride}; }
};

enum class Transpose { kNo, kYes };

// c = alpha op(a) op(b) + beta c, with op(a) (m, k), op(b) (k, n), c (m, n). With beta = 0 the former contents of c do
// not matter (they may be NaN). Sizes may be 0. c must not overlap a or b.
// On the CPU the last bits may depend on the thread count and on m (BLAS chooses its kernels by shape), and large
// products in fp32 on matrix tiles give NaN where an operand is infinite or above 3.39e38 (runtime/matrix_tiles.h).
PKM_OP(gemm, Transpose transpose_a, Transpose transpose_b, float alpha, MatrixSlice<const float> a,
       MatrixSlice<const float> b, float beta, MatrixSlice<float> c)

}  // namespace pkmesh
