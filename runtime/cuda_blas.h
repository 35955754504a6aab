// SPDX-License-Identifier: Apache-2.0
// For _cuda.cu files only: cuBLAS on a stream. Every cuBLAS call stands inside PKM_CUBLAS(...).
#pragma once

#include <cublas_v2.h>

#include "runtime/check.h"
#include "runtime/device.h"

#define PKM_CUBLAS(call)                                                                                              \
  do {                                                                                                                \
    const cublasStatus_t status = (call);                                                                             \
    PKM_CHECK(status == CUBLAS_STATUS_SUCCESS, "{}: {}", cublasGetStatusName(status), cublasGetStatusString(status)); \
  } while (false)

namespace pkmesh::cuda {

// The stream's own handle: fp32 is computed in fp32 (no TF32), scalars are read on the host. One handle and one
// workspace per stream make results repeat bit for bit, and nothing is allocated after the first call.
cublasHandle_t blas(Stream& stream);

}  // namespace pkmesh::cuda
