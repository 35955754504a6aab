// SPDX-License-Identifier: Apache-2.0
// For attention_cuda.cu only: tiles in shared memory and the products of tiles in registers.
//
// A block has 16 x 16 threads; thread (ty, tx) holds the elements (ty + 16 i, tx + 16 j) of each product, so a row of a
// product lies in 16 neighbouring lanes of one warp. Rows of tiles are one element longer than they need be: walking
// down a column then touches all banks of shared memory.
#pragma once

#include "runtime/cuda_kernel.h"

namespace pkmesh::cuda {

constexpr int kSide = 16;
constexpr int kTileThreads = kSide * kSide;

// Tiles of kTile_ queries or keys; heads of at most kWidth_ columns, filled up with zeros.
template <int kWidth_, int kTile_>
struct Tiles {
  static constexpr int kWidth = kWidth_;
  static constexpr int kTile = kTile_;
  static constexpr int kRows = kTile / kSide;           // of a product, per thread
  static constexpr int kColumns = kWidth / kSide;       // of a product with the width, per thread
  static constexpr int kStride = kWidth + 1;            // of a tile
  static constexpr int kScoreStride = kTile + 1;        // of a tile of scores
  static constexpr int kElements = kTile * kStride;     // floats of a tile
  static constexpr int kScores = kTile * kScoreStride;  // floats of a tile of scores
  using Square = float[kRows][kRows];                   // a thread's part of (kTile, kTile)
  using Strip = float[kRows][kColumns];                 // a thread's part of (kTile, kWidth)
};

__device__ inline int tile_row(int i) {
  return static_cast<int>(threadIdx.x) / kSide + kSide * i;
}

__device__ inline int tile_column(int j) {
  return static_cast<int>(threadIdx.x) % kSide + kSide * j;
}

// Rows [first, first + kTile) of one head; row r of the sequence begins at rows + r * stride. Zeros beyond `context`
// rows and `width` columns.
template <class T>
__device__ void load_tile(const float* rows, int64_t stride, int64_t first, int64_t context, int64_t width,
                          float* tile) {
  for (int i = static_cast<int>(threadIdx.x); i < T::kTile * T::kWidth; i += kTileThreads) {
    const int row = i / T::kWidth;
    const int column = i % T::kWidth;
    const bool inside = first + row < context && column < width;
    tile[row * T::kStride + column] = inside ? rows[(first + row) * stride + column] : 0.0F;
  }
}

// The reverse, from registers, times `factor[i]`.
template <class T>
__device__ void store_strip(const typename T::Strip& strip, const float (&factor)[T::kRows], float* rows,
                            int64_t stride, int64_t first, int64_t context, int64_t width) {
#pragma unroll
  for (int i = 0; i < T::kRows; ++i) {
    if (first + tile_row(i) >= context) continue;
#pragma unroll
    for (int c = 0; c < T::kColumns; ++c)
      if (tile_column(c) < width) rows[(first + tile_row(i)) * stride + tile_column(c)] = strip[i][c] * factor[i];
  }
}

template <class T>
__device__ void store_square(const typename T::Square& square, float* scores) {
#pragma unroll
  for (int i = 0; i < T::kRows; ++i)
#pragma unroll
    for (int j = 0; j < T::kRows; ++j) scores[tile_row(i) * T::kScoreStride + tile_column(j)] = square[i][j];
}

// product = a b^T for two tiles.
template <class T>
__device__ void multiply_rows(const float* a, const float* b, typename T::Square& product) {
#pragma unroll
  for (int i = 0; i < T::kRows; ++i)
#pragma unroll
    for (int j = 0; j < T::kRows; ++j) product[i][j] = 0.0F;
#pragma unroll 8
  for (int k = 0; k < T::kWidth; ++k) {
    float left[T::kRows];
    float right[T::kRows];
#pragma unroll
    for (int i = 0; i < T::kRows; ++i) left[i] = a[tile_row(i) * T::kStride + k];
#pragma unroll
    for (int j = 0; j < T::kRows; ++j) right[j] = b[tile_column(j) * T::kStride + k];
#pragma unroll
    for (int i = 0; i < T::kRows; ++i)
#pragma unroll
      for (int j = 0; j < T::kRows; ++j) product[i][j] += left[i] * right[j];
  }
}

// sum += scores tile, or scores^T tile.
template <class T, bool kTransposed>
__device__ void add_product(const float* scores, const float* tile, typename T::Strip& sum) {
#pragma unroll 8
  for (int k = 0; k < T::kTile; ++k) {
    float left[T::kRows];
#pragma unroll
    for (int i = 0; i < T::kRows; ++i)
      left[i] = kTransposed ? scores[k * T::kScoreStride + tile_row(i)] : scores[tile_row(i) * T::kScoreStride + k];
#pragma unroll
    for (int c = 0; c < T::kColumns; ++c) {
      const float right = tile[k * T::kStride + tile_column(c)];
#pragma unroll
      for (int i = 0; i < T::kRows; ++i) sum[i][c] += left[i] * right;
    }
  }
}

}  // namespace pkmesh::cuda
