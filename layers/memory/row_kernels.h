// SPDX-License-Identifier: Apache-2.0
// Weighted sums of rows and dot products with rows on one core, rows of float or bf16, sums in float.
// Rows lie anywhere in a table that is larger than any cache, so four are read at once: four streams keep the memory
// system about twice as busy as one. Sums run in a fixed order that depends on the number of rows only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "runtime/bf16.h"

namespace pkmesh::cpu {

constexpr int64_t kLanes = 8;
constexpr int64_t kBlock = 2 * kLanes;
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));

// kBlock consecutive elements in two vectors. In which order they lie there depends on the type of the rows: a block of
// bf16 is widened without a shuffle into its even and its odd elements, so floats that meet it are split in that way.
struct Block {
  Lanes a, b;
};

template <class To, class From>
[[gnu::always_inline]] inline To load_as(const From* from) {
  To to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

template <class Row>
struct Blocks;

template <>
struct Blocks<float> {
  [[gnu::always_inline]] static Block load_row(const float* row) {
    return {load_as<Lanes>(row), load_as<Lanes>(row + kLanes)};
  }
  [[gnu::always_inline]] static Block load(const float* from) {
    return {load_as<Lanes>(from), load_as<Lanes>(from + kLanes)};
  }
  [[gnu::always_inline]] static void store(float* to, Block block) {
    std::memcpy(to, &block.a, sizeof(Lanes));
    std::memcpy(to + kLanes, &block.b, sizeof(Lanes));
  }
};

template <>
struct Blocks<bf16> {
  using Words = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
  [[gnu::always_inline]] static Block load_row(const bf16* row) {
    const auto pairs = load_as<Words>(row);
    const Words even = pairs << 16;
    const Words odd = pairs & 0xFFFF0000U;
    return {reinterpret_cast<Lanes>(even), reinterpret_cast<Lanes>(odd)};
  }
  [[gnu::always_inline]] static Block load(const float* from) {
    const Block x = Blocks<float>::load(from);
    return {__builtin_shufflevector(x.a, x.b, 0, 2, 4, 6, 8, 10, 12, 14),
            __builtin_shufflevector(x.a, x.b, 1, 3, 5, 7, 9, 11, 13, 15)};
  }
  [[gnu::always_inline]] static void store(float* to, Block block) {
    const Block x = {__builtin_shufflevector(block.a, block.b, 0, 8, 1, 9, 2, 10, 3, 11),
                     __builtin_shufflevector(block.a, block.b, 4, 12, 5, 13, 6, 14, 7, 15)};
    Blocks<float>::store(to, x);
  }
};

[[gnu::always_inline]] inline float sum_lanes(Lanes lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// A row and what it is multiplied with.
template <class T>
struct WeightedRow {
  const T* row;
  float weight;
};

// out = (kFirst ? 0 : out) + sum over kRows rows of weight * row.
template <int kRows, bool kFirst, class T>
[[gnu::always_inline]] inline void add_rows(const WeightedRow<T>* rows, int64_t width, float* out) {
  int64_t j = 0;
  for (; j + kBlock <= width; j += kBlock) {
    Block sum = kFirst ? Block{} : Blocks<T>::load(out + j);
    for (int r = 0; r < kRows; ++r) {
      const Block block = Blocks<T>::load_row(rows[r].row + j);
      sum.a += rows[r].weight * block.a;
      sum.b += rows[r].weight * block.b;
    }
    Blocks<T>::store(out + j, sum);
  }
  for (; j < width; ++j) {
    float sum = kFirst ? 0.0F : out[j];
    for (int r = 0; r < kRows; ++r) sum += rows[r].weight * static_cast<float>(rows[r].row[j]);
    out[j] = sum;
  }
}

// out (width) = sum over i < count of the WeightedRow that row_at(i) gives, four at a time. (Prefetching the beginning
// of the next four by hand was tried: it is slower by half for rows in the cache, and no quicker for others.)
template <class RowAt>
inline void weighted_sum(int64_t count, int64_t width, const RowAt& row_at, float* out) {
  if (count < 4) {
    const decltype(row_at(0)) rows[3] = {count > 0 ? row_at(0) : decltype(row_at(0)){},
                                         count > 1 ? row_at(1) : decltype(row_at(0)){},
                                         count > 2 ? row_at(2) : decltype(row_at(0)){}};
    if (count == 0) std::fill_n(out, width, 0.0F);
    if (count == 1) add_rows<1, true>(rows, width, out);
    if (count == 2) add_rows<2, true>(rows, width, out);
    if (count == 3) add_rows<3, true>(rows, width, out);
    return;
  }
  for (int64_t i = 0; i + 4 <= count; i += 4) {
    const decltype(row_at(0)) rows[4] = {row_at(i), row_at(i + 1), row_at(i + 2), row_at(i + 3)};
    if (i == 0)
      add_rows<4, true>(rows, width, out);
    else
      add_rows<4, false>(rows, width, out);
  }
  for (int64_t i = count / 4 * 4; i < count; ++i) {
    const auto row = row_at(i);
    add_rows<1, false>(&row, width, out);
  }
}

// out[r] = x . rows[r] for kRows rows of `width`.
template <int kRows, class T>
[[gnu::always_inline]] inline void dot_rows(const float* x, const T* const* rows, int64_t width, float* out) {
  Block sums[kRows] = {};
  int64_t j = 0;
  for (; j + kBlock <= width; j += kBlock) {
    const Block factor = Blocks<T>::load(x + j);
    for (int r = 0; r < kRows; ++r) {
      const Block block = Blocks<T>::load_row(rows[r] + j);
      sums[r].a += factor.a * block.a;
      sums[r].b += factor.b * block.b;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float sum = sum_lanes(sums[r].a + sums[r].b);
    for (int64_t i = j; i < width; ++i) sum += x[i] * static_cast<float>(rows[r][i]);
    out[r] = sum;
  }
}

}  // namespace pkmesh::cpu
