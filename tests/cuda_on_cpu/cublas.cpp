// SPDX-License-Identifier: Apache-2.0
// Matrix products by columns. Sums are of doubles, rounded once: closer than any order of floats, and unlike all.
#include <cublas_v2.h>

#include <vector>

#include "runtime/bf16.h"
#include "runtime/fp16.h"

struct cublasContext {
  cudaStream_t stream = nullptr;
};

namespace {

double element(const void* matrix, cudaDataType_t type, int64_t i) {
  if (type == CUDA_R_16F) return static_cast<float>(static_cast<const pkmesh::fp16*>(matrix)[i]);
  if (type == CUDA_R_16BF) return static_cast<float>(static_cast<const pkmesh::bf16*>(matrix)[i]);
  return static_cast<const float*>(matrix)[i];
}

// op(matrix) by columns, as it is multiplied.
std::vector<double> unpacked(const void* matrix, cudaDataType_t type, cublasOperation_t operation, int64_t rows,
                             int64_t columns, int64_t stride) {
  std::vector<double> result;
  result.reserve(static_cast<size_t>(rows * columns));
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t i = 0; i < rows; ++i)
      result.push_back(element(matrix, type, operation == CUBLAS_OP_N ? i + j * stride : j + i * stride));
  return result;
}

struct Factor {
  const void* data;
  cudaDataType_t type;
  cublasOperation_t operation;
  int64_t stride;
};

void multiply(const Factor& a, const Factor& b, int64_t m, int64_t n, int64_t k, double alpha, double beta, float* c,
              int64_t stride) {
  const auto left = unpacked(a.data, a.type, a.operation, m, k, a.stride);
  const auto right = unpacked(b.data, b.type, b.operation, k, n, b.stride);
  std::vector<double> sums(static_cast<size_t>(m));
  for (int64_t j = 0; j < n; ++j) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t l = 0; l < k; ++l) {
      const double factor = right[static_cast<size_t>(l + j * k)];
      const double* const column = left.data() + l * m;
      for (int64_t i = 0; i < m; ++i) sums[static_cast<size_t>(i)] += column[i] * factor;
    }
    for (int64_t i = 0; i < m; ++i) {
      float& out = c[i + j * stride];  // beta 0 forgets even NaN
      out = static_cast<float>(alpha * sums[static_cast<size_t>(i)] + (beta == 0 ? 0 : beta * out));
    }
  }
}

bool whole_columns(const Factor& of, int64_t rows, int64_t columns) {
  return of.stride >= std::max<int64_t>(1, of.operation == CUBLAS_OP_N ? rows : columns);
}

}  // namespace

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = new cublasContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t a_operation, cublasOperation_t b_operation,
                               int64_t m, int64_t n, int64_t k, const float* alpha, const void* a,
                               cudaDataType_t a_type, int64_t lda, const void* b, cudaDataType_t b_type, int64_t ldb,
                               const float* beta, void* c, cudaDataType_t c_type, int64_t ldc, cublasComputeType_t,
                               cublasGemmAlgo_t) {
  const Factor left = {a, a_type, a_operation, lda};
  const Factor right = {b, b_type, b_operation, ldb};
  if (m < 0 || n < 0 || k < 0 || c_type != CUDA_R_32F || ldc < std::max<int64_t>(1, m) || !whole_columns(left, m, k) ||
      !whole_columns(right, k, n))
    return CUBLAS_STATUS_INVALID_VALUE;
  emulation::enqueue(handle->stream, [=, by = *alpha, keep = *beta] {
    multiply(left, right, m, n, k, by, keep, static_cast<float*>(c), ldc);
  });
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t a_operation,
                                         cublasOperation_t b_operation, int m, int n, int k, const float* alpha,
                                         const float* a, int lda, int64_t stride_a, const float* b, int ldb,
                                         int64_t stride_b, const float* beta, float* c, int ldc, int64_t stride_c,
                                         int batch) {
  for (int i = 0; i < batch; ++i) {
    const cublasStatus_t status = cublasSgemm_64(handle, a_operation, b_operation, m, n, k, alpha, a + i * stride_a,
                                                 lda, b + i * stride_b, ldb, beta, c + i * stride_c, ldc);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
  }
  return CUBLAS_STATUS_SUCCESS;
}
