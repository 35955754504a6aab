// SPDX-License-Identifier: Apache-2.0
// Scores of tokens against the sub-keys of one half of a head, on one core: scores = queries keys^T, by a product of
// our own. Such a product is short (c/2 terms), so what a library adds to it tells: clearing the result first, reading
// it back, packing the keys for every block of tokens. Here keys are packed once per head, and each score is written
// once. A score does not depend on the block of tokens that it is taken in. On a CPU with matrix tiles they multiply,
// otherwise its vector registers do: one sum in the order of the columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "runtime/buffer.h"
#include "runtime/lanes.h"
#include "runtime/matrix_tiles.h"
#include "runtime/view.h"

namespace pkmesh::PKM_CPU {

class ScoreProduct {
 public:
  explicit ScoreProduct(bool on_tiles) : on_tiles_(on_tiles) {}

  // Tokens that are multiplied together, so that blocks of tokens are best a multiple of it.
  static int64_t tokens_at_once(bool on_tiles) { return on_tiles ? tiles::kPanel : kTile; }

  // keys (n, width). They are copied: panels of keys, which lie side by side, column by column.
  void take_keys(Matrix<const float> keys) {
    width_ = keys.size(1);
    stride_ = stride(keys.size(0));
    if (on_tiles_) return pack_tiles_of(keys);
    packed_keys_.resize(static_cast<size_t>(stride_ / kLanes * width_));
    for (int64_t first = 0; first < stride_; first += kKeys)
      for (int v = 0; v < kKeyVectors; ++v) pack(keys, first + v * kLanes, &packed_keys_[panel_at(first) + v]);
  }

  // Numbers from one token's scores to the next one's: n, and what fills the last panel.
  static int64_t stride(int64_t n) { return tiles::panels_of(n) * tiles::kPanel; }

  // scores (tokens, stride(n)) = the tokens' queries against every key. There must be room for tokens up to a multiple
  // of tokens_at_once(); what is written there has no meaning. queries: `tokens` times width, `query_stride` apart.
  void multiply(const float* queries, int64_t query_stride, int64_t tokens, float* scores) {
    if (on_tiles_) return multiply_on_tiles(queries, query_stride, tokens, scores);
    const int64_t tiles = (tokens + kTile - 1) / kTile;
    packed_queries_.resize(static_cast<size_t>(tiles * width_ * kTile));
    for (int64_t t = 0; t < tiles * kTile; ++t) {
      float* const to = &packed_queries_[static_cast<size_t>(t / kTile * width_ * kTile + t % kTile)];
      const float* const from = queries + std::min(t, tokens - 1) * query_stride;  // the last one fills the tile
      for (int64_t column = 0; column < width_; ++column) to[column * kTile] = from[column];
    }
    for (int64_t key = 0; key < stride_; key += kKeys)  // a panel serves all tiles while it is in a near cache
      for (int64_t token = 0; token < tokens; token += kTile)
        multiply_tile(&packed_queries_[static_cast<size_t>(token * width_)], &packed_keys_[panel_at(key)],
                      scores + token * stride_ + key);
  }

 private:
  static constexpr int64_t kTile = kLanes == 16 ? 12 : 6;  // their sums and two vectors of keys fill the registers
  static constexpr int kKeyVectors = 2;
  static constexpr int64_t kKeys = kKeyVectors * kLanes;  // of a panel
  static_assert(tiles::kPanel % kKeys == 0);

  int64_t panel_words() const { return tiles::panel_words<tiles::kFp32Parts>(width_); }

  void pack_tiles_of(Matrix<const float> keys) {
    const int64_t panels = stride_ / tiles::kPanel;
    key_panels_ = key_memory_.take<uint32_t>(panels * panel_words());
    uint32_t* out = key_panels_;
    for (int64_t first = 0; first < keys.size(0); first += tiles::kPanel, out += panel_words())
      tiles::pack_panel<tiles::kFp32Parts, tiles::Operand::kRight>(
          {&keys(first, 0), width_, /*inner_together=*/true, std::min(tiles::kPanel, keys.size(0) - first), width_},
          out);
  }

  void multiply_on_tiles(const float* queries, int64_t query_stride, int64_t tokens, float* scores) {
    const int64_t panels = tiles::panels_of(tokens);
    uint32_t* const packed = query_memory_.take<uint32_t>(panels * panel_words());
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t token = panel * tiles::kPanel;
      tiles::pack_panel<tiles::kFp32Parts, tiles::Operand::kLeft>(
          {queries + token * query_stride, query_stride, /*inner_together=*/true,
           std::min(tiles::kPanel, tokens - token), width_},
          packed + panel * panel_words());
    }
    [[maybe_unused]] const tiles::TileScope scope;
    for (int64_t key = 0; key < stride_; key += tiles::kPanel) {
      const uint32_t* const keys = key_panels_ + key / tiles::kPanel * panel_words();
      const uint32_t* const next = key + tiles::kPanel < stride_ ? keys + panel_words() : keys;
      for (int64_t panel = 0; panel < panels; ++panel)
        tiles::multiply_panels<tiles::kFp32Parts>(
            packed + panel * panel_words(), keys, width_, scores + panel * tiles::kPanel * stride_ + key, stride_,
            next + panel % tiles::kAheadShares * panel_words() / tiles::kAheadShares);
    }
  }

  // Where the panel that begins with this key is.
  size_t panel_at(int64_t key) const { return static_cast<size_t>(key / kLanes * width_); }

  // kLanes keys from `first` on; zeros behind the last. `to`: every kKeyVectors-th is theirs.
  void pack(Matrix<const float> keys, int64_t first, Lanes* to) const {
    int64_t column = 0;
    if (first + kLanes <= keys.size(0))
      for (; column + kLanes <= width_; column += kLanes) {
        Lanes block[kLanes];
        for (int64_t key = 0; key < kLanes; ++key) block[key] = load_lanes(&keys(first + key, column));
        transpose_lanes(block);
        for (int64_t j = 0; j < kLanes; ++j) to[(column + j) * kKeyVectors] = block[j];
      }
    const int64_t count = std::min(kLanes, keys.size(0) - first);
    for (; column < width_; ++column) {
      Lanes lanes{};
      for (int64_t key = 0; key < count; ++key) lanes[key] = keys(first + key, column);
      to[column * kKeyVectors] = lanes;
    }
  }

  void multiply_tile(const float* queries, const Lanes* keys, float* scores) const {
    Lanes sums[kTile][kKeyVectors] = {};
    for (int64_t column = 0; column < width_; ++column, keys += kKeyVectors, queries += kTile)
      for (int64_t t = 0; t < kTile; ++t)
        for (int v = 0; v < kKeyVectors; ++v) sums[t][v] += queries[t] * keys[v];
    for (int64_t t = 0; t < kTile; ++t)
      for (int v = 0; v < kKeyVectors; ++v) store_lanes(scores + t * stride_ + v * kLanes, sums[t][v]);
  }

  bool on_tiles_;
  int64_t width_ = 0;
  int64_t stride_ = 0;
  std::vector<Lanes> packed_keys_;     // (panels, width, kKeyVectors)
  std::vector<float> packed_queries_;  // (tiles, width, kTile)
  Scratch key_memory_;                 // for tiles
  Scratch query_memory_;
  uint32_t* key_panels_ = nullptr;
};

}  // namespace pkmesh::PKM_CPU
