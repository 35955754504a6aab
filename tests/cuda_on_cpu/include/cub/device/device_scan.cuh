// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <numeric>
#include <type_traits>

#include "cub/device/temporary.h"

namespace cub {

struct DeviceScan {
  template <class In, class Out>
  static cudaError_t InclusiveSum(void* temporary, size_t& bytes, In in, Out out, int64_t count,
                                  cudaStream_t stream = nullptr) {
    return with_temporary(temporary, bytes, stream, [=] { std::inclusive_scan(in, in + count, out); });
  }
  template <class In, class Out>
  static cudaError_t ExclusiveSum(void* temporary, size_t& bytes, In in, Out out, int64_t count,
                                  cudaStream_t stream = nullptr) {
    using T = std::remove_reference_t<decltype(*out)>;
    return with_temporary(temporary, bytes, stream, [=] { std::exclusive_scan(in, in + count, out, T{}); });
  }
};

}  // namespace cub
