// SPDX-License-Identifier: Apache-2.0
// The sort is stable, by the asked bits only. Of a DoubleBuffer the result is where so many passes of 8 bits would
// leave it; the other buffer holds garbage.
#pragma once

#include <numeric>
#include <type_traits>
#include <vector>

#include "cub/device/temporary.h"

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
                               cudaStream_t stream = nullptr) {
    return with_temporary(temporary, bytes, stream, [=] {
      const auto place = sorted_places(keys, count, begin, end);
      // Into copies first, for keys and keys_out may be the same.
      std::vector<Key> sorted_keys;
      std::vector<Value> sorted_values;
      for (const int64_t i : place) {
        sorted_keys.push_back(keys[i]);
        sorted_values.push_back(values[i]);
      }
      std::copy(sorted_keys.begin(), sorted_keys.end(), keys_out);
      std::copy(sorted_values.begin(), sorted_values.end(), values_out);
    });
  }

  template <class Key, class Value>
  static cudaError_t SortPairs(void* temporary, size_t& bytes, DoubleBuffer<Key>& keys, DoubleBuffer<Value>& values,
                               int64_t count, int begin = 0, int end = 8 * sizeof(Key), cudaStream_t stream = nullptr) {
    const bool moves = temporary != nullptr && (end - begin + 7) / 8 % 2 == 1;
    Key* const keys_in = keys.Current();
    Value* const values_in = values.Current();
    Key* const other_keys = keys.Alternate();
    Value* const other_values = values.Alternate();
    const cudaError_t status = SortPairs(temporary, bytes, keys_in, moves ? other_keys : keys_in, values_in,
                                         moves ? other_values : values_in, count, begin, end, stream);
    if (temporary == nullptr || status != cudaSuccess) return status;
    emulation::enqueue(stream, [=] {
      const auto size = static_cast<size_t>(count);
      std::memset(static_cast<void*>(moves ? keys_in : other_keys), 0xEE, size * sizeof(Key));
      std::memset(static_cast<void*>(moves ? values_in : other_values), 0xEE, size * sizeof(Value));
    });
    if (moves) {
      keys.selector ^= 1;
      values.selector ^= 1;
    }
    return status;
  }

 private:
  template <class Key>
  static std::vector<int64_t> sorted_places(const Key* keys, int64_t count, int begin, int end) {
    using Bits = std::make_unsigned_t<Key>;
    const Bits mask =
        end - begin >= static_cast<int>(8 * sizeof(Key)) ? static_cast<Bits>(~Bits{0}) : (Bits{1} << (end - begin)) - 1;
    // As cub, for which the bit of a sign sorts negative numbers first.
    const Bits flip = std::is_signed_v<Key> ? Bits{1} << (8 * sizeof(Key) - 1) : 0;
    const auto digits = [&](int64_t i) {
      return static_cast<Bits>(((static_cast<Bits>(keys[i]) ^ flip) >> begin) & mask);
    };
    std::vector<int64_t> places(static_cast<size_t>(count));
    std::iota(places.begin(), places.end(), 0);
    std::stable_sort(places.begin(), places.end(), [&](int64_t a, int64_t b) { return digits(a) < digits(b); });
    return places;
  }
};

}  // namespace cub
