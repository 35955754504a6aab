// SPDX-License-Identifier: Apache-2.0
// Small matrix products on one core, a tile of rows times a panel of columns, for kernels that consume them while they
// are in a near cache. What a library adds to a product whose sums are short tells: clearing the result first, reading
// it back, packing the same operand again for every block of rows. Here who packs, and which tiles of a triangle are
// left out, is the kernel's business. An element is one sum in the order of the depth, whatever it is computed with.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "layers/gemm.h"
#include "runtime/lanes.h"

namespace pkmesh::PKM_CPU {

// Rows of a tile: their sums and a panel's vectors of one depth fill the registers.
constexpr int64_t kTileRows = kLanes == 16 ? 12 : 6;

// The right operand (depth, columns) in panels of kColumns columns that lie side by side, depth by depth; zeros behind
// the last column.
class Panels {
 public:
  static constexpr int64_t kVectors = 2;
  static constexpr int64_t kColumns = kVectors * kLanes;

  // Number of columns in whole panels, which a row of a result must have room for.
  static constexpr int64_t padded(int64_t columns) { return (columns + kColumns - 1) / kColumns * kColumns; }

  // The operand is `matrix`.
  void take(MatrixSlice<const float> matrix) {
    reserve(matrix.rows, matrix.columns);
    for (int64_t row = 0; row < depth_; ++row)
      for (int64_t column = 0; column < columns_; column += kLanes) {
        const float* const from = matrix.data + row * matrix.stride + column;
        vector_at(row, column) = column + kLanes <= columns_ ? load_lanes(from) : part(from, 1, columns_ - column);
      }
  }

  // The operand is `matrix` transposed: its rows are the columns.
  void take_transposed(MatrixSlice<const float> matrix) {
    reserve(matrix.columns, matrix.rows);
    for (int64_t column = 0; column < columns_; column += kLanes) {
      const float* const from = matrix.data + column * matrix.stride;
      int64_t row = 0;
      if (column + kLanes <= columns_)
        for (; row + kLanes <= depth_; row += kLanes) {
          Lanes block[kLanes];
          for (int64_t i = 0; i < kLanes; ++i) block[i] = load_lanes(from + i * matrix.stride + row);
          transpose_lanes(block);
          for (int64_t i = 0; i < kLanes; ++i) vector_at(row + i, column) = block[i];
        }
      for (; row < depth_; ++row)
        vector_at(row, column) = part(from + row, matrix.stride, std::min(kLanes, columns_ - column));
    }
  }

  // The panel that holds this column, from row `depth` on.
  const Lanes* panel(int64_t column, int64_t depth = 0) const {
    return &vectors_[static_cast<size_t>((column / kColumns * depth_ + depth) * kVectors)];
  }
  int64_t depth() const { return depth_; }
  int64_t columns() const { return columns_; }

 private:
  void reserve(int64_t depth, int64_t columns) {
    depth_ = depth;
    columns_ = columns;
    vectors_.resize(static_cast<size_t>(padded(columns) / kLanes * depth));
    if (columns % kColumns != 0) std::fill_n(vectors_.end() - depth * kVectors, depth * kVectors, Lanes{});
  }
  Lanes& vector_at(int64_t depth, int64_t column) {
    return vectors_[static_cast<size_t>((column / kColumns * depth_ + depth) * kVectors + column % kColumns / kLanes)];
  }
  static Lanes part(const float* from, int64_t stride, int64_t count) {
    Lanes lanes{};
    for (int64_t i = 0; i < count; ++i) lanes[i] = from[i * stride];
    return lanes;
  }

  int64_t depth_ = 0;
  int64_t columns_ = 0;
  std::vector<Lanes> vectors_;  // (panels, depth, kVectors)
};

// The left operand, element (row, depth) at data + row * row_stride + depth * depth_stride: as it lies or transposed.
struct TileRows {
  const float* data;
  int64_t row_stride;
  int64_t depth_stride;
};

template <int64_t kRows, bool kAdd>
[[gnu::always_inline]] inline void multiply_rows(const TileRows& a, const Lanes* panel, int64_t depth, float* c,
                                                 int64_t stride) {
  Lanes sums[kRows][Panels::kVectors] = {};
  const float* from = a.data;
  for (int64_t d = 0; d < depth; ++d, from += a.depth_stride, panel += Panels::kVectors)
    for (int64_t row = 0; row < kRows; ++row)
      for (int v = 0; v < Panels::kVectors; ++v) sums[row][v] += from[row * a.row_stride] * panel[v];
  for (int64_t row = 0; row < kRows; ++row)
    for (int v = 0; v < Panels::kVectors; ++v) {
      float* const to = c + row * stride + v * kLanes;
      store_lanes(to, kAdd ? load_lanes(to) + sums[row][v] : sums[row][v]);
    }
}

// c (rows, kColumns), rows `stride` apart, = or += rows times panel; at most kTileRows of them, fewer one by one.
template <bool kAdd>
[[gnu::always_inline]] inline void multiply_tile(const TileRows& a, int64_t rows, const Lanes* panel, int64_t depth,
                                                 float* c, int64_t stride) {
  if (rows == kTileRows) return multiply_rows<kTileRows, kAdd>(a, panel, depth, c, stride);
  for (int64_t row = 0; row < rows; ++row)
    multiply_rows<1, kAdd>({a.data + row * a.row_stride, 0, a.depth_stride}, panel, depth, c + row * stride, stride);
}

}  // namespace pkmesh::PKM_CPU
