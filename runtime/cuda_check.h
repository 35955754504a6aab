// SPDX-License-Identifier: Apache-2.0
// For _cuda.cu files only: every CUDA call stands inside PKM_CUDA(...), which throws with CUDA's own words and the
// place.
#pragma once

#include <cuda_runtime.h>

#include "runtime/check.h"

#define PKM_CUDA(call)                                                                                \
  do {                                                                                                \
    const cudaError_t status = (call);                                                                \
    PKM_CHECK(status == cudaSuccess, "{}: {}", cudaGetErrorName(status), cudaGetErrorString(status)); \
  } while (false)
