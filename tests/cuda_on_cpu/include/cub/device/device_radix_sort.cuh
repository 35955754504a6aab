// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <numeric>
#include <vector>

namespace cub {

template <class T>
struct DoubleBuffer {
  T* d_buffers[2] = {nullptr, nullptr};
  int selector = 0;
  DoubleBuffer() = default;
  DoubleBuffer(T* current, T* alternate) : d_buffers{current, alternate} {}
  T* Current() { return d_buffers[selector]; }
  T* Alternate() { return d_buffers[1 - selector]; }
};

struct DeviceRadixSort {
  template <class Key, class Value>
  static cudaError_t SortPairs(void* temporary, size_t& bytes, const Key* keys, Key* keys_out, const Value* values,
                               Value* values_out, int64_t count, int begin = 0, int end = 8 * sizeof(Key),
                               cudaStream_t = nullptr) {
    bytes = 1;
    if (temporary == nullptr) return cudaSuccess;
    using Bits = std::make_unsigned_t<Key>;
    const Bits mask = end - begin >= static_cast<int>(8 * sizeof(Key)) ? ~Bits{0} : (Bits{1} << (end - begin)) - 1;
    const auto digits = [&](int64_t i) { return static_cast<Bits>(static_cast<Bits>(keys[i]) >> begin) & mask; };
    std::vector<int64_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return digits(a) < digits(b); });
    for (int64_t i = 0; i < count; ++i) {
      keys_out[i] = keys[order[static_cast<size_t>(i)]];
      values_out[i] = values[order[static_cast<size_t>(i)]];
    }
    return cudaSuccess;
  }
  template <class Key, class Value>
  static cudaError_t SortPairs(void* temporary, size_t& bytes, DoubleBuffer<Key>& keys, DoubleBuffer<Value>& values,
                               int64_t count, int begin = 0, int end = 8 * sizeof(Key), cudaStream_t stream = nullptr) {
    const cudaError_t status = SortPairs(temporary, bytes, keys.Current(), keys.Alternate(), values.Current(),
                                         values.Alternate(), count, begin, end, stream);
    if (temporary == nullptr) return status;
    keys.selector ^= 1;
    values.selector ^= 1;
    return status;
  }
};

}  // namespace cub
