// SPDX-License-Identifier: Apache-2.0
// Matrix products by columns, added up in double.
#pragma once

#include <cuda_runtime.h>

using cublasHandle_t = void*;
enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cudaDataType_t { CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT };
enum cublasMath_t { CUBLAS_DEFAULT_MATH };
enum cublasAtomicsMode_t { CUBLAS_ATOMICS_NOT_ALLOWED };

inline const char* cublasGetStatusName(cublasStatus_t) {
  return "cublas";
}
inline const char* cublasGetStatusString(cublasStatus_t) {
  return "an error of the emulation";
}
inline cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = new char;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete static_cast<char*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetStream(cublasHandle_t, cudaStream_t) {
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetWorkspace(cublasHandle_t, void*, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) {
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetAtomicsMode(cublasHandle_t, cublasAtomicsMode_t) {
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGemmEx_64(cublasHandle_t, cublasOperation_t a_flips, cublasOperation_t b_flips, int64_t m,
                               int64_t n, int64_t k, const float* alpha, const void* a, cudaDataType_t a_type,
                               int64_t lda, const void* b, cudaDataType_t b_type, int64_t ldb, const float* beta,
                               void* c, cudaDataType_t c_type, int64_t ldc, cublasComputeType_t, cublasGemmAlgo_t);
inline cublasStatus_t cublasSgemm_64(cublasHandle_t handle, cublasOperation_t a_flips, cublasOperation_t b_flips,
                                     int64_t m, int64_t n, int64_t k, const float* alpha, const float* a, int64_t lda,
                                     const float* b, int64_t ldb, const float* beta, float* c, int64_t ldc) {
  return cublasGemmEx_64(handle, a_flips, b_flips, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, beta, c,
                         CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}
inline cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t a_flips,
                                                cublasOperation_t b_flips, int m, int n, int k, const float* alpha,
                                                const float* a, int lda, int64_t stride_a, const float* b, int ldb,
                                                int64_t stride_b, const float* beta, float* c, int ldc,
                                                int64_t stride_c, int batch) {
  for (int i = 0; i < batch; ++i)
    cublasSgemm_64(handle, a_flips, b_flips, m, n, k, alpha, a + i * stride_a, lda, b + i * stride_b, ldb, beta,
                   c + i * stride_c, ldc);
  return CUBLAS_STATUS_SUCCESS;
}
