// SPDX-License-Identifier: Apache-2.0
// Scores of tokens against the sub-keys of one half of a head, on one core: scores = queries keys^T, by a product of
// our own. Such a product is short (c/2 terms), so what a library adds to it tells: clearing the result first, reading
// it back, packing the keys for every block of tokens. Here keys are packed once per head, and each score is written
// once. A score is one sum in the order of the columns, whatever the block of tokens that it is taken in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "runtime/lanes.h"
#include "runtime/view.h"

namespace pkmesh::PKM_CPU {

class ScoreProduct {
 public:
  // Tokens at a time: their sums and two vectors of keys fill the registers.
  static constexpr int64_t kTile = kLanes == 16 ? 12 : 6;

  // keys (n, width). They are copied: panels of kPanel keys, which lie side by side, column by column.
  void take_keys(Matrix<const float> keys) {
    width_ = keys.size(1);
    stride_ = stride(keys.size(0));
    packed_keys_.resize(static_cast<size_t>(stride_ / kLanes * width_));
    for (int64_t first = 0; first < stride_; first += kPanel)
      for (int v = 0; v < kPanelVectors; ++v) pack(keys, first + v * kLanes, &packed_keys_[panel_at(first) + v]);
  }

  // Numbers from one token's scores to the next one's: n, and what fills the last panel.
  static int64_t stride(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

  // scores (tokens, stride(n)) = the tokens' queries against every key. The last token's are written again until the
  // tile is full, for which there must be room. queries: `tokens` times width, `query_stride` apart.
  void multiply(const float* queries, int64_t query_stride, int64_t tokens, float* scores) {
    const int64_t tiles = (tokens + kTile - 1) / kTile;
    packed_queries_.resize(static_cast<size_t>(tiles * width_ * kTile));
    for (int64_t t = 0; t < tiles * kTile; ++t) {
      float* const to = &packed_queries_[static_cast<size_t>(t / kTile * width_ * kTile + t % kTile)];
      const float* const from = queries + std::min(t, tokens - 1) * query_stride;  // the last one fills the tile
      for (int64_t column = 0; column < width_; ++column) to[column * kTile] = from[column];
    }
    for (int64_t key = 0; key < stride_; key += kPanel)  // a panel serves all tiles while it is in a near cache
      for (int64_t token = 0; token < tokens; token += kTile)
        multiply_tile(&packed_queries_[static_cast<size_t>(token * width_)], &packed_keys_[panel_at(key)],
                      scores + token * stride_ + key);
  }

 private:
  static constexpr int kPanelVectors = 2;
  static constexpr int64_t kPanel = kPanelVectors * kLanes;

  // Where the panel that begins with this key is.
  size_t panel_at(int64_t key) const { return static_cast<size_t>(key / kLanes * width_); }

  // kLanes keys from `first` on; zeros behind the last. `to`: every kPanelVectors-th is theirs.
  void pack(Matrix<const float> keys, int64_t first, Lanes* to) const {
    int64_t column = 0;
    if (first + kLanes <= keys.size(0))
      for (; column + kLanes <= width_; column += kLanes) {
        Lanes block[kLanes];
        for (int64_t key = 0; key < kLanes; ++key) block[key] = load_lanes(&keys(first + key, column));
        transpose_lanes(block);
        for (int64_t j = 0; j < kLanes; ++j) to[(column + j) * kPanelVectors] = block[j];
      }
    const int64_t count = std::min(kLanes, keys.size(0) - first);
    for (; column < width_; ++column) {
      Lanes lanes{};
      for (int64_t key = 0; key < count; ++key) lanes[key] = keys(first + key, column);
      to[column * kPanelVectors] = lanes;
    }
  }

  void multiply_tile(const float* queries, const Lanes* keys, float* scores) const {
    Lanes sums[kTile][kPanelVectors] = {};
    for (int64_t column = 0; column < width_; ++column, keys += kPanelVectors, queries += kTile)
      for (int64_t t = 0; t < kTile; ++t)
        for (int v = 0; v < kPanelVectors; ++v) sums[t][v] += queries[t] * keys[v];
    for (int64_t t = 0; t < kTile; ++t)
      for (int v = 0; v < kPanelVectors; ++v) store_lanes(scores + t * stride_ + v * kLanes, sums[t][v]);
  }

  int64_t width_ = 0;
  int64_t stride_ = 0;
  std::vector<Lanes> packed_keys_;     // (panels, width, kPanelVectors)
  std::vector<float> packed_queries_;  // (tiles, width, kTile)
};

}  // namespace pkmesh::PKM_CPU
