// SPDX-License-Identifier: Apache-2.0
// What cub's calls have in common: asked with no memory, they say how much they want (and do nothing else); given
// memory, they refuse too little of it, and leave garbage there.
#pragma once

#include <cuda_runtime.h>

namespace cub {

constexpr size_t kTemporaryBytes = 767;

template <class Work>
cudaError_t with_temporary(void* temporary, size_t& bytes, cudaStream_t stream, Work work) {
  if (temporary == nullptr) {
    bytes = kTemporaryBytes;
    return cudaSuccess;
  }
  if (bytes < kTemporaryBytes) return cudaErrorUnknown;
  emulation::enqueue(stream, [=] {
    std::memset(temporary, 0xEE, kTemporaryBytes);
    work();
  });
  return cudaSuccess;
}

}  // namespace cub
