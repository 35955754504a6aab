// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <numeric>

namespace cub {

struct DeviceScan {
  template <class In, class Out>
  static cudaError_t InclusiveSum(void* temporary, size_t& bytes, In in, Out out, int64_t count, cudaStream_t = nullptr) {
    bytes = 1;
    if (temporary != nullptr) std::inclusive_scan(in, in + count, out);
    return cudaSuccess;
  }
  template <class In, class Out>
  static cudaError_t ExclusiveSum(void* temporary, size_t& bytes, In in, Out out, int64_t count, cudaStream_t = nullptr) {
    bytes = 1;
    using T = std::remove_reference_t<decltype(*out)>;
    if (temporary != nullptr) std::exclusive_scan(in, in + count, out, T{});
    return cudaSuccess;
  }
};

}  // namespace cub
