// SPDX-License-Identifier: Apache-2.0
// For gemm_onednn.cpp: operands of a matrix product, rounded to bf16, in the layouts that oneDNN multiplies. The inner
// dimension is filled up with zeros to a multiple of kPackBlock.
#pragma once

#include "layers/gemm.h"

namespace pkmesh {

constexpr int64_t kPackPanel = 64;  // columns
constexpr int64_t kPackBlock = 32;  // rows of a panel's block

// Rows and columns of op(matrix).
struct PackedRange {
  int64_t row = 0;
  int64_t rows = 0;
  int64_t column = 0;
  int64_t columns = 0;
};

// The left operand, row-major; the inner dimension is the columns.
PKM_OP(pack_rows, MatrixSlice<const float> matrix, Transpose transpose, const PackedRange& range, uint16_t* out)

// The right operand; the inner dimension is the rows: panels of kPackPanel columns (the last one filled up with zeros),
// in a panel blocks of kPackBlock rows, in a block pairs of rows, an element of one beside the element of the other
// (oneDNN's tag BA16a64b2a). `out` counts pairs.
PKM_OP(pack_panels, MatrixSlice<const float> matrix, Transpose transpose, const PackedRange& range, uint32_t* out)

}  // namespace pkmesh
