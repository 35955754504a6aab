// SPDX-License-Identifier: Apache-2.0
// Who multiplies: large products go to the CPU's matrix tiles where it has them, or to oneDNN where it is ahead of BLAS
// (docs/benchmarks.md), all others to BLAS.
#include "layers/gemm_cpu.h"

#include <cblas.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "layers/gemm_onednn.h"
#include "layers/gemm_tiles.h"
#include "runtime/bf16.h"
#include "runtime/matrix_tiles.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kSmallest = 32;    // rows, columns or inner elements of a large product
constexpr int64_t kSmall = 1 << 20;  // multiplications that BLAS does as well

bool is_large(int64_t inner, MatrixSlice<float> c) {
  return std::min({c.rows, c.columns, inner}) >= kSmallest && c.rows * c.columns * inner >= kSmall;
}

// BLAS counts in its own integer type, 32 bits wide in Debian's packages.
blasint to_int(int64_t size) {
  PKM_CHECK(size >= 0 && size <= std::numeric_limits<blasint>::max(), "gemm: BLAS cannot count to {}", size);
  return static_cast<blasint>(size);
}

CBLAS_TRANSPOSE blas_transpose(Transpose transpose) {
  return transpose == Transpose::kYes ? CblasTrans : CblasNoTrans;
}

// sgemm of the operands rounded to bf16, where the CPU has no products of bf16: right, not fast.
MatrixSlice<const float> rounded(MatrixSlice<const float> matrix, std::vector<float>& memory) {
  memory.resize(static_cast<size_t>(matrix.rows * matrix.columns));
  for (int64_t i = 0; i < matrix.rows; ++i)
    std::transform(matrix.data + i * matrix.stride, matrix.data + i * matrix.stride + matrix.columns,
                   memory.data() + i * matrix.columns, [](float x) { return static_cast<float>(bf16(x)); });
  return {memory.data(), matrix.rows, matrix.columns, matrix.columns};
}

// c = alpha op(a) op(b) + beta c, or with a bias alpha op(a) op(b) + bias.
void multiply(Stream& stream, Transpose transpose_a, Transpose transpose_b, float alpha, MatrixSlice<const float> a,
              MatrixSlice<const float> b, Vector<const float> bias, float beta, MatrixSlice<float> c) {
  if (c.rows == 0 || c.columns == 0) return;
  const int64_t inner = transpose_a == Transpose::kYes ? a.rows : a.columns;
  PKM_CHECK(stream.math() != Math::kFp16, "gemm: the CPU has no fp16 products");
  if (is_large(inner, c)) {
    if (tiles::are_there())
      return PKM_CPU::gemm_on_tiles(stream, stream.math(), transpose_a, transpose_b, alpha, a, b, bias, beta, c);
    const bool plain = alpha == 1.0F && (beta == 0.0F || beta == 1.0F);
    if (plain && !in_parallel() && OneDnnProducts::suits(stream.math(), c))
      return OneDnnProducts::of(stream).multiply(stream.math(), transpose_a, transpose_b, a, b, bias, beta == 1.0F, c);
  }
  if (!bias.empty()) {  // goes in first: BLAS reads and writes c anyway, so adding it costs one pass less
    parallel_for(0, c.rows, 1 + 16384 / c.columns, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) std::copy(bias.begin(), bias.end(), c.data + i * c.stride);
    });
    beta = 1.0F;
  }
  thread_local std::vector<float> rounded_a;
  thread_local std::vector<float> rounded_b;
  if (stream.math() == Math::kBf16) {
    a = rounded(a, rounded_a);
    b = rounded(b, rounded_b);
  }
  // BLAS wants strides of at least 1, even of matrices that it does not read.
  cblas_sgemm(CblasRowMajor, blas_transpose(transpose_a), blas_transpose(transpose_b), to_int(c.rows),
              to_int(c.columns), to_int(inner), alpha, a.data, std::max<blasint>(1, to_int(a.stride)), b.data,
              std::max<blasint>(1, to_int(b.stride)), beta, c.data, to_int(c.stride));
}

}  // namespace

void gemm(Stream& stream, Transpose transpose_a, Transpose transpose_b, float alpha, MatrixSlice<const float> a,
          MatrixSlice<const float> b, float beta, MatrixSlice<float> c) {
  multiply(stream, transpose_a, transpose_b, alpha, a, b, {}, beta, c);
}

void gemm_with_bias(Stream& stream, Transpose transpose_a, Transpose transpose_b, MatrixSlice<const float> a,
                    MatrixSlice<const float> b, Vector<const float> bias, MatrixSlice<float> c) {
  multiply(stream, transpose_a, transpose_b, 1.0F, a, b, bias, 0.0F, c);
}

}  // namespace pkmesh::PKM_CPU
