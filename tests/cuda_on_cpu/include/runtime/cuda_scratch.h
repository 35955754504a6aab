// SPDX-License-Identifier: Apache-2.0
// Stands in for runtime/cuda_scratch.h: the same, with gaps between the parts that AddressSanitizer guards.
#pragma once

#include <utility>
#include <vector>

#include "runtime/cuda_stream.h"

#ifdef PKM_ASAN
#include <sanitizer/asan_interface.h>
#endif

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
    const int64_t end = bytes_ + count * static_cast<int64_t>(sizeof(T));
    bytes_ = (end + kGap + kAlignment - 1) / kAlignment * kAlignment;
    gaps_.emplace_back(end, bytes_ - end);
    return part;
  }
  std::byte* take(Stream& stream) const {
    std::byte* const memory = cuda::scratch_bytes(stream, bytes_);
#ifdef PKM_ASAN
    for (const auto& [begin, bytes] : gaps_) __asan_poison_memory_region(memory + begin, static_cast<size_t>(bytes));
#endif
    return memory;
  }

 private:
  static constexpr int64_t kAlignment = 256;
  static constexpr int64_t kGap = 64;
  int64_t bytes_ = 0;
  std::vector<std::pair<int64_t, int64_t>> gaps_;
};

}  // namespace pkmesh::cuda
