// SPDX-License-Identifier: Apache-2.0
// For kernels on the CPU: gemm() with a bias.
#pragma once

#include "layers/gemm.h"

namespace pkmesh::PKM_CPU {

// c = op(a) op(b), plus `bias` (columns of c; empty: none) in every row.
void gemm_with_bias(Stream& stream, Transpose transpose_a, Transpose transpose_b, MatrixSlice<const float> a,
                    MatrixSlice<const float> b, Vector<const float> bias, MatrixSlice<float> c);

}  // namespace pkmesh::PKM_CPU
