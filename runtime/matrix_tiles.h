// SPDX-License-Identifier: Apache-2.0
// Products on a CPU's matrix tiles (AMX), which multiply bf16 and add in fp32 at sixteen times the rate of vector
// registers. They give products in fp32, too: a float is the exact sum of three bf16 (24 bits, 8 in each), and of the
// nine products of two such sums six are as exact as fp32 is, for the other three are together below 2^-24 of the whole
// (Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
// Computations"). A tile adds 32 products up before it adds them to a sum in fp32, so long sums are rounded less often
// than in a loop.
//
// Operands are packed into panels: kPanel rows of the left one, or columns of the right one, by all of the inner
// dimension, which is filled up with zeros to a multiple of kPanel. Part by part, as tiles load them.
//
// Range: tiles take numbers below 2^-126 for zero, parts of floats included, so that a float below 2^-103 has fewer
// than 24 bits, and one below 2^-118 no more than bf16's 8. In fp32 a float that bf16 rounds to infinity (3.39e38 and
// above) counts as NaN.
//
// For x_cpu.cpp alone. What multiplies panels stands in matrix_tiles_amx.h; the baseline's compilation has plain loops
// of the same sums (matrix_tiles_in_loops.h), which are there for tests: they give the same bits within that range.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "runtime/lanes.h"

namespace pkmesh::PKM_CPU::tiles {

constexpr int64_t kPanel = 32;     // rows, columns, and inner elements of a step: two tiles each way
constexpr int64_t kTileEdge = 16;  // rows of a tile, and words in each
constexpr int64_t kTileWords = kTileEdge * kTileEdge;  // a word is a pair of bf16, kTileEdge inner elements apart

// Parts that a float is split into.
constexpr int kFp32Parts = 3;  // products in fp32
constexpr int kBf16Parts = 1;  // of operands rounded to bf16

constexpr int64_t kPartWords = 2 * kTileWords;  // of one part of a float in a step

// Panels that hold so many rows or columns.
constexpr int64_t panels_of(int64_t count) {
  return (count + kPanel - 1) / kPanel;
}

// Words of a panel.
template <int kParts>
constexpr int64_t panel_words(int64_t inner) {
  return panels_of(inner) * kParts * kPartWords;
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
  if constexpr (kParts == kBf16Parts) {
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

// One tile of each part, kPartWords apart. Word j of row i is the pair from[i stride + j], from[i stride + j +
// second].
template <int kParts>
inline void pack_tiles(const float* from, int64_t stride, int64_t second, uint32_t* out) {
  for (int64_t i = 0; i < kTileEdge; ++i)
    for (int64_t j = 0; j < kTileEdge; j += kLanes) {
      const float* const at = from + i * stride + j;
      Words pairs[kParts];
      split<kParts>(load_lanes(at), load_lanes(at + second), pairs);
      for (int part = 0; part < kParts; ++part)
        std::memcpy(out + part * kPartWords + i * kTileEdge + j, &pairs[part], sizeof(Words));
    }
}

// out: panel_words(source.inner); at the beginning of a cache line, or tiles take twice as long to load.
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

// The share of a panel that multiply_panels() fetches ahead.
constexpr int64_t kAheadShares = 4;

// Sets up this thread's tiles for as long as it lives. Wanted around multiply_panels(); scopes do not nest.
class TileScope;

// out (kPanel, kPanel), rows `stride` apart, = the left panel times the right one, over `inner` elements. Meanwhile the
// panel's part that begins at `ahead`, one of kAheadShares, is fetched into the second-level cache.
template <int kParts>
void multiply_panels(const uint32_t* left, const uint32_t* right, int64_t inner, float* out, int64_t stride,
                     const uint32_t* ahead);

}  // namespace pkmesh::PKM_CPU::tiles

#ifdef PKM_MATRIX_TILES
#include "runtime/matrix_tiles_amx.h"
namespace pkmesh::PKM_CPU::tiles {
constexpr bool kCompiledIn = true;
}
#else
#include "runtime/matrix_tiles_in_loops.h"
namespace pkmesh::PKM_CPU::tiles {
constexpr bool kCompiledIn = false;
}
#endif

namespace pkmesh::PKM_CPU::tiles {

// Whether this is code for tiles, on a CPU that has them.
inline bool are_there() {
  return kCompiledIn && cpu_level() == CpuLevel::kAmx;
}

}  // namespace pkmesh::PKM_CPU::tiles
