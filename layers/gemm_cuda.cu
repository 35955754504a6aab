// SPDX-License-Identifier: Apache-2.0
// cuBLAS stores by columns, so it sees each of our matrices transposed: c^T = op(b)^T op(a)^T is computed instead, with
// the same flags, the factors swapped and our strides as leading dimensions.
#include "layers/gemm.h"
#include "runtime/cuda_blas.h"
#include "runtime/cuda_kernel.h"

namespace pkmesh::cuda {
namespace {

cublasOperation_t operation(Transpose transpose) {
  return transpose == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
}

// c = beta c, where beta = 0 forgets even NaN.
struct ScaleSlice {
  float beta;
  int64_t columns, stride;
  float* c;
  __device__ void operator()(int64_t i) const {
    float& element = c[i / columns * stride + i % columns];
    element = beta == 0.0F ? 0.0F : beta * element;
  }
};

}  // namespace

void gemm(Stream& stream, Transpose transpose_a, Transpose transpose_b, float alpha, MatrixSlice<const float> a,
          MatrixSlice<const float> b, float beta, MatrixSlice<float> c) {
  if (c.rows == 0 || c.columns == 0) return;
  const int64_t inner = transpose_a == Transpose::kYes ? a.rows : a.columns;
  if (inner == 0) return for_each(stream, c.rows * c.columns, ScaleSlice{beta, c.columns, c.stride, c.data});
  PKM_CUBLAS(cublasSgemm_64(blas(stream), operation(transpose_b), operation(transpose_a), c.columns, c.rows, inner,
                            &alpha, b.data, b.stride, a.data, a.stride, &beta, c.data, c.stride));
}

}  // namespace pkmesh::cuda
