// SPDX-License-Identifier: Apache-2.0
// Scores of tokens against the sub-keys of one half of a head, on one core: scores = queries keys^T, in tiles. Keys are
// packed once per head, and each score is written once. A score is one sum in the order of the columns, whatever the
// block of tokens that it is taken in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "layers/tile_product.h"
#include "runtime/view.h"

namespace pkmesh::PKM_CPU {

class ScoreProduct {
 public:
  // keys (n, width). They are copied.
  void take_keys(Matrix<const float> keys) { keys_.take_transposed(keys); }

  // Numbers from one token's scores to the next one's: n, and what fills the last panel.
  static int64_t stride(int64_t n) { return Panels::padded(n); }

  // scores (tokens, stride(n)) = the tokens' queries against every key. The last token's are written again until the
  // tile is full, for which there must be room. queries: `tokens` times width, `query_stride` apart.
  void multiply(const float* queries, int64_t query_stride, int64_t tokens, float* scores) {
    const int64_t width = keys_.depth();
    const int64_t score_stride = stride(keys_.columns());
    const int64_t tiles = (tokens + kTileRows - 1) / kTileRows;
    // Queries lie far apart: a tile's side by side, column by column, are read as often as there are panels.
    queries_.resize(static_cast<size_t>(tiles * width * kTileRows));
    for (int64_t t = 0; t < tiles * kTileRows; ++t) {
      float* const to = &queries_[static_cast<size_t>(t / kTileRows * width * kTileRows + t % kTileRows)];
      const float* const from = queries + std::min(t, tokens - 1) * query_stride;  // the last one fills the tile
      for (int64_t column = 0; column < width; ++column) to[column * kTileRows] = from[column];
    }
    for (int64_t key = 0; key < keys_.columns(); key += Panels::kColumns)  // a panel serves all tiles, in a near cache
      for (int64_t token = 0; token < tokens; token += kTileRows)
        multiply_tile<false>({&queries_[static_cast<size_t>(token * width)], 1, kTileRows}, kTileRows, keys_.panel(key),
                             width, scores + token * score_stride + key, score_stride);
  }

 private:
  Panels keys_;
  std::vector<float> queries_;  // (tiles, width, kTileRows)
};

}  // namespace pkmesh::PKM_CPU
