// SPDX-License-Identifier: Apache-2.0
// For matrix_tiles.h: a CPU's matrix tiles themselves. Tiles 0 to 3 are sums, 4 and 5 the left operand, 6 and 7 the
// right one; each of those is loaded anew as soon as its last product has begun, between products that do not need it.
//
// What an instruction does is written from Intel's Software Developer's Manual, volume 2 (LDTILECFG, TDPBF16PS).
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "runtime/matrix_tiles.h"

namespace pkmesh::PKM_CPU::tiles {

class TileScope {
 public:
  TileScope() {
    struct alignas(64) {
      uint8_t palette = 1, first_row = 0, unused[14] = {};
      uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shape;
    asm volatile("ldtilecfg %0" ::"m"(shape));  // GCC 12's intrinsic tells the compiler of eight bytes alone
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

constexpr int64_t kTileRowBytes = kTileEdge * sizeof(uint32_t);

// Adds one step of two panels, of which each is one part.
[[gnu::always_inline]] inline void multiply_rounded(const uint32_t* left, const uint32_t* right) {
  _tile_loadd(4, left, kTileRowBytes);
  _tile_loadd(6, right, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, right + kTileWords, kTileRowBytes);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, left + kTileWords, kTileRowBytes);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// Adds one step of two panels of three parts: left by right 0 by 2, 0 by 1, 0 by 0, 1 by 0, 1 by 1, 2 by 0. Calls
// between() three times on the way.
template <class Between>
[[gnu::always_inline]] inline void multiply_split(const uint32_t* left, const uint32_t* right, const Between& between) {
  const uint32_t* const left_1 = left + kPartWords;
  const uint32_t* const left_2 = left_1 + kPartWords;
  const uint32_t* const right_1 = right + kPartWords;
  const uint32_t* const right_2 = right_1 + kPartWords;
  _tile_loadd(4, left, kTileRowBytes);  // 0 by 2
  _tile_loadd(6, right_2, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, right_2 + kTileWords, kTileRowBytes);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, left + kTileWords, kTileRowBytes);
  _tile_dpbf16ps(2, 5, 6);
  _tile_loadd(6, right_1, kTileRowBytes);
  _tile_dpbf16ps(3, 5, 7);
  _tile_loadd(7, right_1 + kTileWords, kTileRowBytes);
  between();
  _tile_dpbf16ps(0, 4, 6);  // 0 by 1
  _tile_dpbf16ps(2, 5, 6);
  _tile_loadd(6, right, kTileRowBytes);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(3, 5, 7);
  _tile_loadd(7, right + kTileWords, kTileRowBytes);
  between();
  _tile_dpbf16ps(0, 4, 6);  // 0 by 0
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(4, left_1, kTileRowBytes);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
  _tile_loadd(5, left_1 + kTileWords, kTileRowBytes);
  between();
  _tile_dpbf16ps(0, 4, 6);  // 1 by 0
  _tile_dpbf16ps(2, 5, 6);
  _tile_loadd(6, right_1, kTileRowBytes);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(3, 5, 7);
  _tile_loadd(7, right_1 + kTileWords, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 6);  // 1 by 1
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(4, left_2, kTileRowBytes);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
  _tile_loadd(5, left_2 + kTileWords, kTileRowBytes);
  _tile_loadd(6, right, kTileRowBytes);
  _tile_loadd(7, right + kTileWords, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 6);  // 2 by 0
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

template <int kParts>
void multiply_panels(const uint32_t* left, const uint32_t* right, int64_t inner, float* out, int64_t stride,
                     const uint32_t* ahead) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  asm volatile("" ::: "memory");  // the compiler does not see what tiles read
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const auto fetch = [&ahead] {  // what belongs to one part of a step
#pragma GCC unroll 16
    for (int64_t line = 0; line < kPartWords / kTileEdge / kAheadShares; ++line, ahead += kTileEdge)
      __builtin_prefetch(ahead, 0, 2);
  };
  const uint32_t* const end = left + panel_words<kParts>(inner);
  for (; left < end; left += kParts * kPartWords, right += kParts * kPartWords)
    if constexpr (kParts == kFp32Parts) {
      multiply_split(left, right, fetch);
    } else {
      multiply_rounded(left, right);
      fetch();
    }
  _tile_stored(0, out, bytes);
  _tile_stored(1, out + kTileEdge, bytes);
  _tile_stored(2, out + kTileEdge * stride, bytes);
  _tile_stored(3, out + kTileEdge * stride + kTileEdge, bytes);
}

}  // namespace pkmesh::PKM_CPU::tiles
