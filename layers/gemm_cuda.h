// SPDX-License-Identifier: Apache-2.0
// For _cuda.cu files only: products of matrices that an op has rounded to 16 bits itself, so that each is rounded once
// however many products it is in. Sums are fp32. gemm() does the same for a single product.
#pragma once

#include "layers/gemm.h"

namespace pkmesh::cuda {

// A matrix in 16 bits, of the kind that `math` names; rows lie a multiple of 16 bytes apart, as tensor cores want it.
struct Narrow {
  const void* data;
  int64_t rows;
  int64_t columns;
  int64_t stride;  // elements
};

int64_t narrow_bytes(int64_t rows, int64_t columns);
// Rounds to nearest, into memory aligned to 16 bytes.
Narrow narrow(Stream& stream, Math math, MatrixSlice<const float> from, std::byte* memory);

// c = op(a) op(b) + beta c; as gemm().
void multiply(Stream& stream, Math math, Transpose transpose_a, Transpose transpose_b, const Narrow& a, const Narrow& b,
              float alpha, float beta, MatrixSlice<float> c);

}  // namespace pkmesh::cuda
