// SPDX-License-Identifier: Apache-2.0
// For matrix_tiles.h: what tiles compute, in plain loops. Every sum is added up in the order of matrix_tiles_amx.h, and
// of Intel's definition of TDPBF16PS: within a tile, the lower and the upper halves of words each for themselves.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "runtime/matrix_tiles.h"

namespace pkmesh::PKM_CPU::tiles {

class TileScope {
 public:
  TileScope() = default;
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// sums (kPanel, kPanel) += one part of a step of the left panel times one of the right one.
inline void add_products(const uint32_t* left, const uint32_t* right, float* sums, int64_t stride) {
  const auto lower = [](uint32_t word) { return std::bit_cast<float>(word << 16); };
  const auto upper = [](uint32_t word) { return std::bit_cast<float>(word & 0xFFFF0000U); };
  for (int64_t i = 0; i < kPanel; ++i)
    for (int64_t column = 0; column < kPanel; column += kTileEdge) {
      const uint32_t* const tile = right + column / kTileEdge * kTileWords;
      float of_lower[kTileEdge] = {};
      float of_upper[kTileEdge] = {};
      for (int64_t pair = 0; pair < kTileEdge; ++pair)
        for (int64_t j = 0; j < kTileEdge; ++j) {
          const uint32_t word = tile[pair * kTileEdge + j];
          of_lower[j] = std::fma(lower(left[i * kTileEdge + pair]), lower(word), of_lower[j]);
          of_upper[j] = std::fma(upper(left[i * kTileEdge + pair]), upper(word), of_upper[j]);
        }
      for (int64_t j = 0; j < kTileEdge; ++j) sums[i * stride + column + j] += of_lower[j] + of_upper[j];
    }
}

template <int kParts>
void multiply_panels(const uint32_t* left, const uint32_t* right, int64_t inner, float* out, int64_t stride,
                     const uint32_t* /*ahead*/) {
  constexpr int64_t kOrder[6][2] = {{0, 2}, {0, 1}, {0, 0}, {1, 0}, {1, 1}, {2, 0}};  // parts of left and right
  const uint32_t* const end = left + panel_words<kParts>(inner);
  for (int64_t i = 0; i < kPanel; ++i) std::fill_n(out + i * stride, kPanel, 0.0F);
  for (; left < end; left += kParts * kPartWords, right += kParts * kPartWords)
    for (const auto& parts : kOrder)
      if (std::max(parts[0], parts[1]) < kParts)
        add_products(left + parts[0] * kPartWords, right + parts[1] * kPartWords, out, stride);
}

}  // namespace pkmesh::PKM_CPU::tiles
