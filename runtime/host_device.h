// SPDX-License-Identifier: Apache-2.0
// PKM_HOST_DEVICE stands before inline functions that CUDA kernels call too.
#pragma once

#ifdef __CUDACC__
#define PKM_HOST_DEVICE __host__ __device__
#else
#define PKM_HOST_DEVICE
#endif
