// SPDX-License-Identifier: Apache-2.0
// For _cuda.cu files only: consecutive elements of a row, loaded in one access and widened to float. A thread that
// reads 16 bytes at a time, of several rows before it uses the first, keeps the memory system busy.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "runtime/bf16.h"
#include "runtime/cuda_kernel.h"
#include "runtime/fp16.h"

namespace pkmesh::cuda {

template <int kCount>
struct Pack {
  float at[kCount];
};

// Elements of T that 16 bytes hold.
template <class T>
constexpr int kWide = 16 / sizeof(T);

// True if each row of a (rows, width) matrix at `data` begins at a multiple of `bytes`.
template <class T>
bool rows_aligned(const T* data, int64_t width, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0 &&
         width * static_cast<int64_t>(sizeof(T)) % bytes == 0;
}

// kCount is 1 or a multiple of 4; `from` is aligned to the whole pack, or to 16 bytes of it.
template <int kCount>
__device__ inline Pack<kCount> load_pack(const float* from) {
  Pack<kCount> pack;
  if constexpr (kCount == 1) {
    pack.at[0] = *from;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      pack.at[i] = four.x;
      pack.at[i + 1] = four.y;
      pack.at[i + 2] = four.z;
      pack.at[i + 3] = four.w;
    }
  }
  return pack;
}

// A word holds two elements of T, the earlier one in its low half.
template <class T>
__device__ inline void widen(uint32_t word, float* to) {
  if constexpr (std::is_same_v<T, bf16>) {
    to[0] = __uint_as_float(word << 16);
    to[1] = __uint_as_float(word & 0xFFFF0000U);
  } else {
    static_assert(std::is_same_v<T, fp16>);
    to[0] = __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
    to[1] = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
  }
}

// T has 16 bits. kCount is 1, 4 or 8; `from` is aligned to the pack.
template <int kCount, class T>
__device__ inline Pack<kCount> load_pack(const T* from) {
  static_assert(sizeof(T) == 2);
  static_assert(kCount == 1 || kCount == 4 || kCount == 8);
  Pack<kCount> pack;
  if constexpr (kCount == 1) {
    pack.at[0] = static_cast<float>(*from);
  } else if constexpr (kCount == 4) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    widen<T>(words.x, pack.at);
    widen<T>(words.y, pack.at + 2);
  } else {
    const uint4 words = *reinterpret_cast<const uint4*>(from);
    widen<T>(words.x, pack.at);
    widen<T>(words.y, pack.at + 2);
    widen<T>(words.z, pack.at + 4);
    widen<T>(words.w, pack.at + 6);
  }
  return pack;
}

template <int kCount>
__device__ inline void store_pack(const Pack<kCount>& pack, float* to) {
  if constexpr (kCount == 1) {
    *to = pack.at[0];
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4)
      *reinterpret_cast<float4*>(to + i) = make_float4(pack.at[i], pack.at[i + 1], pack.at[i + 2], pack.at[i + 3]);
  }
}

// sum += weight * pack.
template <int kCount>
__device__ inline void add_scaled(float weight, const Pack<kCount>& pack, Pack<kCount>& sum) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum.at[i] += weight * pack.at[i];
}

// Columns [column, column + 4) of a row; those from `width` on are 0. `whole`: rows are aligned to the pack, and width
// is a multiple of 4.
template <class T>
__device__ inline Pack<4> load_four(const T* row, int64_t column, int64_t width, bool whole) {
  if (whole) return load_pack<4>(row + column);
  Pack<4> pack{};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (column + i < width) pack.at[i] = static_cast<float>(row[column + i]);
  return pack;
}

// Threads of a block, a multiple of a warp and at most `most`, for `items` to be shared among them.
inline int threads_for(int64_t items, int most) {
  return static_cast<int>(std::min<int64_t>(ceil_divide(std::max<int64_t>(items, 1), kWarp) * kWarp, most));
}

}  // namespace pkmesh::cuda
