// SPDX-License-Identifier: Apache-2.0
// Products on a CPU's matrix tiles (AMX), which multiply bf16 and add in fp32 at sixteen times the rate of vector
// registers. They give products in fp32, too: a float is the exact sum of three bf16 (24 bits, 8 in each), and six of
// the nine products of two such sums are as exact as fp32 is, for the other three are below 2^-24 of the whole (Henry,
// Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
// Computations"). A tile adds 32 products up before it adds them to a sum in fp32, so long sums are rounded less often
// than in a loop.
//
// Operands are packed into panels: kPanel rows of the left one, or columns of the right one, by all of the inner
// dimension, which is filled up with zeros to a multiple of kPanel. Part by part, as tiles load them.
//
// Tiles flush what is below 2^-126 to zero. Parts of an infinite float, or of one that bf16 rounds to infinity (above
// 3.39e38), are NaN.
//
// For x_cpu.cpp alone. Compiled for a CPU without tiles, the same sums run in plain loops: slow, and there for tests.
#pragma once

#ifdef __AMX_TILE__
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "runtime/lanes.h"

namespace pkmesh::PKM_CPU {

constexpr int64_t kPanel = 32;     // rows, columns, and inner elements of a step: two tiles each way
constexpr int64_t kTileEdge = 16;  // rows of a tile, and words in each
constexpr int64_t kTileWords = kTileEdge * kTileEdge;  // a word is a pair of bf16, kTileEdge inner elements apart

// Parts that a float is split into.
constexpr int kSingle = 3;      // products in fp32
constexpr int kBrainFloat = 1;  // of operands rounded to bf16

// Words of a panel.
template <int kParts>
constexpr int64_t panel_words(int64_t inner) {
  return (inner + kPanel - 1) / kPanel * kParts * 2 * kTileWords;
}

// What goes into a panel: at most kPanel rows of op(a), or columns of op(b), called lines, of `inner` elements each.
struct PanelSource {
  const float* first;
  int64_t stride;       // in memory, from line to line, or from element to element
  bool inner_together;  // whether a line's elements lie side by side, or those of all lines with the same index
  int64_t lines;
  int64_t inner;
};

enum class Operand { kLeft, kRight };

using Words = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));

// The nearest bf16 in the upper half. Ties go to even, and a NaN stays one, as in bf16.h.
[[gnu::always_inline]] inline Words nearest_even(Words bits) {
  const Words nearest = bits + 0x7FFFU + ((bits >> 16) & 1U);
  const auto is_nan = (bits & 0x7FFFFFFFU) > 0x7F800000U;
  return (is_nan ? bits | 0x400000U : nearest) & 0xFFFF0000U;
}

// Pairs of the parts of kLanes floats each.
template <int kParts>
[[gnu::always_inline]] inline void split(Lanes low, Lanes high, Words (&pairs)[kParts]) {
  if constexpr (kParts == kBrainFloat) {
    pairs[0] = nearest_even(std::bit_cast<Words>(low)) >> 16 | nearest_even(std::bit_cast<Words>(high));
    return;
  }
  for (int part = 0; part < kParts; ++part) {
    // Whichever way ties go, what is left has eight bits less; the last part has no more than eight.
    const uint32_t half = part + 1 < kParts ? 0x8000U : 0U;
    const Words of_low = (std::bit_cast<Words>(low) + half) & 0xFFFF0000U;
    const Words of_high = (std::bit_cast<Words>(high) + half) & 0xFFFF0000U;
    pairs[part] = of_low >> 16 | of_high;
    low -= std::bit_cast<Lanes>(of_low);
    high -= std::bit_cast<Lanes>(of_high);
  }
}

// Word j of row i and word i of row j change places.
inline void transpose_tile(uint32_t* tile) {
  const auto load = [&](int64_t row, int64_t column, Words(&block)[kLanes]) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) std::memcpy(&block[i], tile + (row + i) * kTileEdge + column, sizeof(Words));
    transpose_lanes(block);
  };
  const auto store = [&](int64_t row, int64_t column, const Words(&block)[kLanes]) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) std::memcpy(tile + (row + i) * kTileEdge + column, &block[i], sizeof(Words));
  };
  for (int64_t i = 0; i < kTileEdge; i += kLanes)
    for (int64_t j = 0; j <= i; j += kLanes) {
      Words lower[kLanes];
      load(i, j, lower);
      if (i != j) {
        Words upper[kLanes];
        load(j, i, upper);
        store(i, j, upper);
      }
      store(j, i, lower);
    }
}

// One tile of each part, 2 kTileWords apart. Word j of row i is the pair from[i stride + j], from[i stride + j +
// second].
template <int kParts>
inline void pack_tiles(const float* from, int64_t stride, int64_t second, uint32_t* out) {
  for (int64_t i = 0; i < kTileEdge; ++i)
    for (int64_t j = 0; j < kTileEdge; j += kLanes) {
      const float* const at = from + i * stride + j;
      Words pairs[kParts];
      split<kParts>(load_lanes(at), load_lanes(at + second), pairs);
      for (int part = 0; part < kParts; ++part)
        std::memcpy(out + part * 2 * kTileWords + i * kTileEdge + j, &pairs[part], sizeof(Words));
    }
}

// out: panel_words(source.inner), of which each 16 lie in one cache line.
template <int kParts, Operand kOperand>
void pack_panel(const PanelSource& source, uint32_t* out) {
  alignas(64) float filled[kPanel * kPanel];  // a block that is not whole, with zeros
  for (int64_t k = 0; k < source.inner; k += kPanel, out += panel_words<kParts>(kPanel)) {
    const float* from = source.first + (source.inner_together ? k : k * source.stride);
    int64_t stride = source.stride;
    const int64_t inner = std::min(kPanel, source.inner - k);
    if (inner < kPanel || source.lines < kPanel) {
      std::fill_n(filled, kPanel * kPanel, 0.0F);
      const int64_t rows = source.inner_together ? source.lines : inner;
      const int64_t columns = source.inner_together ? inner : source.lines;
      for (int64_t i = 0; i < rows; ++i) std::copy_n(from + i * stride, columns, filled + i * kPanel);
      from = filled;
      stride = kPanel;
    }
    for (int64_t half = 0; half < 2; ++half, from += kTileEdge * (source.inner_together ? stride : 1))
      pack_tiles<kParts>(from, stride, kTileEdge * (source.inner_together ? 1 : stride), out + half * kTileWords);
    if (source.inner_together != (kOperand == Operand::kLeft))
      for (int64_t tile = 0; tile < 2 * kParts; ++tile) transpose_tile(out + tile * kTileWords);
  }
}

// Sets up this core's tiles for as long as it lives. Wanted around multiply_panels().
class TileScope {
 public:
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
#ifdef __AMX_TILE__
  TileScope() {
    struct alignas(64) {
      uint8_t palette = 1, first_row = 0, unused[14] = {};
      uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shape;
    _tile_loadconfig(&shape);
  }
  ~TileScope() {
    _tile_release();
  }
#else
  TileScope() = default;
#endif
};

// The share of a panel that multiply_panels() fetches ahead.
constexpr int64_t kAheadShares = 4;

// out (kPanel, kPanel), rows `stride` apart, = the left panel times the right one, over `inner` elements; added to what
// is there if `accumulate`. Meanwhile the panel's part that begins at `ahead`, one of kAheadShares, is fetched into the
// second-level cache.
template <int kParts>
void multiply_panels(const uint32_t* left, const uint32_t* right, int64_t inner, bool accumulate, float* out,
                     int64_t stride, const uint32_t* ahead) {
  constexpr int64_t kPart = 2 * kTileWords;
  const uint32_t* const end = left + panel_words<kParts>(inner);
#ifdef __AMX_TILE__
  constexpr int64_t kRowBytes = kTileEdge * sizeof(uint32_t);
  const int64_t out_bytes = stride * static_cast<int64_t>(sizeof(float));
  const auto fetch = [&ahead] {  // for one part of one step
#pragma GCC unroll 16
    for (int64_t line = 0; line < kPart / kTileEdge / kAheadShares; ++line, ahead += kTileEdge)
      __builtin_prefetch(ahead, 0, 2);
  };
  asm volatile("" ::: "memory");  // the compiler does not see what tiles read
  if (accumulate) {
    _tile_loadd(0, out, out_bytes);
    _tile_loadd(1, out + kTileEdge, out_bytes);
    _tile_loadd(2, out + kTileEdge * stride, out_bytes);
    _tile_loadd(3, out + kTileEdge * stride + kTileEdge, out_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  // Sums are tiles 0 to 3. 4 and 5 are the left operand, 6 and 7 the right one; each is loaded anew as soon as its last
  // product has begun.
  for (; left < end; left += kParts * kPart, right += kParts * kPart) {
    const uint32_t* const left_0 = left;
    const uint32_t* const right_0 = right;
    if constexpr (kParts == kSingle) {
      const uint32_t* const left_1 = left + kPart;
      const uint32_t* const left_2 = left + 2 * kPart;
      const uint32_t* const right_1 = right + kPart;
      const uint32_t* const right_2 = right + 2 * kPart;
      _tile_loadd(4, left_0, kRowBytes);  // 0 by 2
      _tile_loadd(6, right_2, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, right_2 + kTileWords, kRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, left_0 + kTileWords, kRowBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(6, right_1, kRowBytes);
      _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(7, right_1 + kTileWords, kRowBytes);
      fetch();
      _tile_dpbf16ps(0, 4, 6);  // 0 by 1
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(6, right_0, kRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(7, right_0 + kTileWords, kRowBytes);
      fetch();
      _tile_dpbf16ps(0, 4, 6);  // 0 by 0
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(4, left_1, kRowBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(5, left_1 + kTileWords, kRowBytes);
      fetch();
      _tile_dpbf16ps(0, 4, 6);  // 1 by 0
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(6, right_1, kRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(7, right_1 + kTileWords, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);  // 1 by 1
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(4, left_2, kRowBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(5, left_2 + kTileWords, kRowBytes);
      _tile_loadd(6, right_0, kRowBytes);
      _tile_loadd(7, right_0 + kTileWords, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);  // 2 by 0
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    } else {
      _tile_loadd(4, left_0, kRowBytes);
      _tile_loadd(6, right_0, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, right_0 + kTileWords, kRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, left_0 + kTileWords, kRowBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      fetch();
    }
  }
  _tile_stored(0, out, out_bytes);
  _tile_stored(1, out + kTileEdge, out_bytes);
  _tile_stored(2, out + kTileEdge * stride, out_bytes);
  _tile_stored(3, out + kTileEdge * stride + kTileEdge, out_bytes);
#else
  static_cast<void>(ahead);
  const auto lower = [](uint32_t word) { return std::bit_cast<float>(word << 16); };
  const auto upper = [](uint32_t word) { return std::bit_cast<float>(word & 0xFFFF0000U); };
  // Parts of the left and of the right operand, in the order above.
  constexpr int64_t kOrder[6][2] = {{0, 2}, {0, 1}, {0, 0}, {1, 0}, {1, 1}, {2, 0}};
  for (int64_t i = 0; i < kPanel && !accumulate; ++i) std::fill_n(out + i * stride, kPanel, 0.0F);
  for (; left < end; left += kParts * kPart, right += kParts * kPart)
    for (const auto& parts : kOrder) {
      if (std::max(parts[0], parts[1]) >= kParts) continue;
      for (int64_t i = 0; i < kPanel; ++i)
        for (int64_t half = 0; half < 2; ++half) {
          const uint32_t* const a = left + parts[0] * kPart + i * kTileEdge;
          const uint32_t* const b = right + parts[1] * kPart + half * kTileWords;
          float* const sums = out + i * stride + half * kTileEdge;
          float of_lower[kTileEdge] = {};
          float of_upper[kTileEdge] = {};
          for (int64_t word = 0; word < kTileEdge; ++word)
            for (int64_t j = 0; j < kTileEdge; ++j) {
              const uint32_t of_b = b[word * kTileEdge + j];
              of_lower[j] = std::fma(lower(a[word]), lower(of_b), of_lower[j]);
              of_upper[j] = std::fma(upper(a[word]), upper(of_b), of_upper[j]);
            }
          for (int64_t j = 0; j < kTileEdge; ++j) sums[j] += of_lower[j] + of_upper[j];
        }
    }
#endif
}

}  // namespace pkmesh::PKM_CPU
