// SPDX-License-Identifier: Apache-2.0
// For _cuda.cu files only: a stream as CUDA knows it, and what it owns on its device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "runtime/cuda_check.h"
#include "runtime/device.h"

namespace pkmesh::cuda {

inline cudaStream_t native(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.native());
}

// Makes the device the calling thread's: what is launched or allocated from now on goes there.
void make_current(int index);

// Lives as long as the stream; made on first use.
struct StreamState {
  std::shared_ptr<std::byte> scratch;
  int64_t scratch_bytes = 0;
  std::shared_ptr<std::byte> blas_workspace;  // declared first: it outlives the handle that uses it
  std::shared_ptr<void> blas;                 // cublasHandle_t
};

StreamState& state(Stream& stream);

// Memory for one op's intermediate results, aligned to 256 bytes, with undefined contents. An op asks once, for all
// that it needs: the next call on this stream hands out the same memory, which is safe because the stream is in order.
// It grows to the largest request so far, so a steady step allocates nothing.
std::byte* scratch_bytes(Stream& stream, int64_t bytes);

template <class T>
T* scratch(Stream& stream, int64_t count) {
  return reinterpret_cast<T*>(scratch_bytes(stream, count * static_cast<int64_t>(sizeof(T))));
}

}  // namespace pkmesh::cuda
