// SPDX-License-Identifier: Apache-2.0
// For gemm_cpu.cpp: large products on matrix tiles (runtime/matrix_tiles.h).
#pragma once

#include "layers/gemm.h"

namespace pkmesh::PKM_CPU {

// As gemm(), for inner dimensions of at least 1, plus `bias` (columns of c; empty: none) in every row. math: kFp32, or
// kBf16 for operands rounded to bf16. No bit depends on the threads.
void gemm_on_tiles(Stream& stream, Math math, Transpose transpose_a, Transpose transpose_b, float alpha,
                   MatrixSlice<const float> a, MatrixSlice<const float> b, Vector<const float> bias, float beta,
                   MatrixSlice<float> c);

}  // namespace pkmesh::PKM_CPU
