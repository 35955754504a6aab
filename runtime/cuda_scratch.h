// SPDX-License-Identifier: Apache-2.0
// For _cuda.cu files only: several arrays in one op's scratch, which the stream owns and hands out once per op. An op
// first lists what it needs, then takes it:
//
//   ScratchPlan plan;
//   const auto sums = plan.add<double>(blocks * width);
//   std::byte* const memory = plan.take(stream);
//   kernel<<<...>>>(sums.in(memory));
#pragma once

#include "runtime/cuda_stream.h"

namespace pkmesh::cuda {

template <class T>
struct ScratchPart {
  int64_t offset;  // bytes
  int64_t count;   // elements
  T* in(std::byte* memory) const { return reinterpret_cast<T*>(memory + offset); }
};

class ScratchPlan {
 public:
  template <class T>
  ScratchPart<T> add(int64_t count) {
    const ScratchPart<T> part{bytes_, count};
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return part;
  }
  std::byte* take(Stream& stream) const { return cuda::scratch_bytes(stream, bytes_); }

 private:
  static constexpr int64_t kAlignment = 256;
  int64_t bytes_ = 0;
};

}  // namespace pkmesh::cuda
