// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>

#include "layers/gemm_pack.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kTileRows = 16;  // rows of the left operand packed together
constexpr int64_t kStrip = 64;     // and columns

int64_t round_up(int64_t count, int64_t unit) {
  return (count + unit - 1) / unit * unit;
}

// The bits of x rounded to bf16, in the upper half; a NaN stays one.
[[gnu::always_inline]] inline uint32_t rounded_bits(float x) {
  const auto u = std::bit_cast<uint32_t>(x);
  const uint32_t nearest = (u + 0x7FFFU + ((u >> 16) & 1U)) & 0xFFFF0000U;
  return (u & 0x7FFFFFFFU) > 0x7F800000U ? u | 0x400000U : nearest;
}

struct Source {
  MatrixSlice<const float> matrix;
  bool transposed;
};

// tile(i, j) = op(matrix)(row + i, column + j), zero outside rows x columns.
template <int64_t kRows, int64_t kColumns>
void load(const Source& source, int64_t row, int64_t column, int64_t rows, int64_t columns, float* tile) {
  if (rows < kRows || columns < kColumns) std::fill_n(tile, kRows * kColumns, 0.0F);
  const int64_t stride = source.matrix.stride;
  if (!source.transposed) {
    const float* from = source.matrix.data + row * stride + column;
    for (int64_t i = 0; i < rows; ++i) std::copy_n(from + i * stride, columns, tile + i * kColumns);
    return;
  }
  const float* from = source.matrix.data + column * stride + row;
  if (rows == kRows && columns == kColumns) {  // counts that the compiler knows
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t j = 0; j < kColumns; ++j) tile[i * kColumns + j] = from[j * stride + i];
    return;
  }
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t i = 0; i < rows; ++i) tile[i * kColumns + j] = from[j * stride + i];
}

// `inside` numbers and zeros up to `width`.
void pack_strip(const float* in, int64_t inside, int64_t width, uint16_t* out) {
#pragma omp simd
  for (int64_t j = 0; j < inside; ++j) out[j] = static_cast<uint16_t>(rounded_bits(in[j]) >> 16);
  std::fill(out + inside, out + width, uint16_t{0});
}

// A block of rows as pairs.
void pack_block(const float* tile, uint32_t* out) {
  for (int64_t pair = 0; pair < kPackBlock / 2; ++pair) {
    const float* even = tile + 2 * pair * kPackPanel;
    const float* odd = even + kPackPanel;
    uint32_t* const to = out + pair * kPackPanel;
#pragma omp simd
    for (int64_t j = 0; j < kPackPanel; ++j) to[j] = rounded_bits(even[j]) >> 16 | rounded_bits(odd[j]);
  }
}

}  // namespace

void pack_rows(Stream&, MatrixSlice<const float> matrix, Transpose transpose, const PackedRange& range, uint16_t* out) {
  const Source source = {matrix, transpose == Transpose::kYes};
  const int64_t length = round_up(range.columns, kPackBlock);
  const int64_t groups = (range.rows + kTileRows - 1) / kTileRows;
  parallel_for(0, groups, 1 + 8192 / (kTileRows * length), [&](int64_t from, int64_t to) {
    alignas(64) float tile[kTileRows * kStrip];
    for (int64_t i = from * kTileRows; i < std::min(to * kTileRows, range.rows); i += kTileRows) {
      const int64_t height = std::min(kTileRows, range.rows - i);
      for (int64_t k = 0; k < length; k += kStrip) {
        const int64_t inside = std::min(kStrip, range.columns - k);
        if (source.transposed) load<kTileRows, kStrip>(source, range.row + i, range.column + k, height, inside, tile);
        for (int64_t j = 0; j < height; ++j) {
          const float* row = matrix.data + (range.row + i + j) * matrix.stride + range.column + k;
          pack_strip(source.transposed ? tile + j * kStrip : row, inside, std::min(kStrip, length - k),
                     out + (i + j) * length + k);
        }
      }
    }
  });
}

void pack_panels(Stream&, MatrixSlice<const float> matrix, Transpose transpose, const PackedRange& range,
                 uint32_t* out) {
  const Source source = {matrix, transpose == Transpose::kYes};
  const int64_t blocks = (range.rows + kPackBlock - 1) / kPackBlock;
  const int64_t panels = (range.columns + kPackPanel - 1) / kPackPanel;
  parallel_for(0, panels * blocks, 4, [&](int64_t from, int64_t to) {
    alignas(64) float tile[kPackBlock * kPackPanel];
    for (int64_t at = from; at < to; ++at) {
      const int64_t row = at % blocks * kPackBlock;
      const int64_t column = at / blocks * kPackPanel;
      load<kPackBlock, kPackPanel>(source, range.row + row, range.column + column,
                                   std::min(kPackBlock, range.rows - row), std::min(kPackPanel, range.columns - column),
                                   tile);
      pack_block(tile, out + at * (kPackBlock / 2) * kPackPanel);
    }
  });
}

}  // namespace pkmesh::PKM_CPU
