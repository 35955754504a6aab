// SPDX-License-Identifier: Apache-2.0
// cuBLAS stores by columns, so it sees each of our matrices transposed: c^T = op(b)^T op(a)^T is computed instead, with
// the same flags, the factors swapped and our strides as leading dimensions.
#include <cuda_fp16.h>

#include "layers/gemm_cuda.h"
#include "runtime/bf16.h"
#include "runtime/cuda_blas.h"
#include "runtime/cuda_kernel.h"
#include "runtime/cuda_scratch.h"

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

constexpr int kPack = 8;  // 16-bit elements in 16 bytes

int64_t padded(int64_t columns) {
  return ceil_divide(columns, kPack) * kPack;
}

template <Math kMath>
__device__ uint32_t rounded(float x) {
  if constexpr (kMath == Math::kBf16)
    return bf16(x).bits;
  else
    return __half_as_ushort(__float2half_rn(x));
}

// The i-th pack of the rounded matrix; zeros behind the last column.
template <Math kMath>
struct RoundPack {
  const float* from;
  int64_t columns, stride, packs;  // packs of a row
  bool whole;                      // rows are aligned to 16 bytes, and all packs are full
  uint4* to;
  __device__ void operator()(int64_t i) const {
    const int64_t column = i % packs * kPack;
    const float* const row = from + i / packs * stride;
    alignas(16) float x[kPack] = {};
    if (whole) {
      *reinterpret_cast<float4*>(x) = *reinterpret_cast<const float4*>(row + column);
      *reinterpret_cast<float4*>(x + 4) = *reinterpret_cast<const float4*>(row + column + 4);
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j)
        if (column + j < columns) x[j] = row[column + j];
    }
    const auto word = [&](int j) { return rounded<kMath>(x[j]) | rounded<kMath>(x[j + 1]) << 16; };
    to[i] = make_uint4(word(0), word(2), word(4), word(6));
  }
};

template <Math kMath>
void round_matrix(Stream& stream, MatrixSlice<const float> from, std::byte* memory) {
  const bool whole =
      from.columns % kPack == 0 && from.stride % 4 == 0 && reinterpret_cast<uintptr_t>(from.data) % 16 == 0;
  const int64_t packs = padded(from.columns) / kPack;
  for_each(stream, from.rows * packs,
           RoundPack<kMath>{from.data, from.columns, from.stride, packs, whole, reinterpret_cast<uint4*>(memory)});
}

}  // namespace

int64_t narrow_bytes(int64_t rows, int64_t columns) {
  return rows * padded(columns) * 2;
}

Narrow narrow(Stream& stream, Math math, MatrixSlice<const float> from, std::byte* memory) {
  if (math == Math::kBf16)
    round_matrix<Math::kBf16>(stream, from, memory);
  else
    round_matrix<Math::kFp16>(stream, from, memory);
  return {memory, from.rows, from.columns, padded(from.columns)};
}

void multiply(Stream& stream, Math math, Transpose transpose_a, Transpose transpose_b, const Narrow& a, const Narrow& b,
              float alpha, float beta, MatrixSlice<float> c) {
  if (c.rows == 0 || c.columns == 0) return;
  const int64_t inner = transpose_a == Transpose::kYes ? a.rows : a.columns;
  if (inner == 0) return for_each(stream, c.rows * c.columns, ScaleSlice{beta, c.columns, c.stride, c.data});
  const cudaDataType_t type = math == Math::kBf16 ? CUDA_R_16BF : CUDA_R_16F;
  PKM_CUBLAS(cublasGemmEx_64(blas(stream), operation(transpose_b), operation(transpose_a), c.columns, c.rows, inner,
                             &alpha, b.data, type, b.stride, a.data, type, a.stride, &beta, c.data, CUDA_R_32F,
                             c.stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void gemm(Stream& stream, Transpose transpose_a, Transpose transpose_b, float alpha, MatrixSlice<const float> a,
          MatrixSlice<const float> b, float beta, MatrixSlice<float> c) {
  if (c.rows == 0 || c.columns == 0) return;
  if (const Math math = stream.math(); math != Math::kFp32) {
    ScratchPlan plan;
    const auto a_memory = plan.add<std::byte>(narrow_bytes(a.rows, a.columns));
    const auto b_memory = plan.add<std::byte>(narrow_bytes(b.rows, b.columns));
    std::byte* const memory = plan.take(stream);
    return multiply(stream, math, transpose_a, transpose_b, narrow(stream, math, a, a_memory.in(memory)),
                    narrow(stream, math, b, b_memory.in(memory)), alpha, beta, c);
  }
  const int64_t inner = transpose_a == Transpose::kYes ? a.rows : a.columns;
  if (inner == 0) return for_each(stream, c.rows * c.columns, ScaleSlice{beta, c.columns, c.stride, c.data});
  PKM_CUBLAS(cublasSgemm_64(blas(stream), operation(transpose_b), operation(transpose_a), c.columns, c.rows, inner,
                            &alpha, b.data, b.stride, a.data, a.stride, &beta, c.data, c.stride));
}

}  // namespace pkmesh::cuda
