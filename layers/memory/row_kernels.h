// SPDX-License-Identifier: Apache-2.0
// Weighted sums of rows and dot products with rows on one core, rows of float, bf16 or fp16, sums in float.
// Rows lie anywhere in a table that is larger than any cache, so four are read at once: four streams keep the memory
// system about twice as busy as one. Sums run in a fixed order that depends on the number of rows and the level only.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "runtime/bf16.h"
#include "runtime/cpu.h"
#include "runtime/fp16.h"
#include "runtime/lanes.h"

namespace pkmesh::PKM_CPU {

// kLanes consecutive elements as floats, as load_lanes() of floats.
[[gnu::always_inline]] inline Lanes load_lanes(const bf16* from) {
  using Halves = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));
  using Words = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  return std::bit_cast<Lanes>(__builtin_convertvector(halves, Words) << 16);
}
[[gnu::always_inline]] inline Lanes load_lanes(const fp16* from) {  // as fp16 does it; finite values
  using Halves = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));
  using Words = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  const Words bits = __builtin_convertvector(halves, Words);
  const Lanes scaled = std::bit_cast<Lanes>((bits & 0x7FFFU) << 13) * 0x1p112F;
  return std::bit_cast<Lanes>(std::bit_cast<Words>(scaled) | (bits & 0x8000U) << 16);
}

// A row and what it is multiplied with.
template <class T>
struct WeightedRow {
  const T* row;
  float weight;
};

// Fetches the beginning of a row that comes next into the second-level cache. What follows the hardware fetches by
// itself, once it sees the row being read; hints for all of a row only got in its way (docs/tried.md).
template <class T>
[[gnu::always_inline]] inline void prefetch_beginning(const T* row) {
  constexpr int64_t kLine = 64 / sizeof(T);
  constexpr int64_t kLines = 8;
  for (int64_t i = 0; i < kLines; ++i) __builtin_prefetch(row + i * kLine, 0, 2);
}

// out = (kFirst ? 0 : out) + sum over kRows rows of weight * row.
template <int kRows, bool kFirst, class T>
[[gnu::always_inline]] inline void add_rows(const WeightedRow<T>* rows, int64_t width, float* out) {
  constexpr int64_t kBlock = 2 * kLanes;
  int64_t j = 0;
  for (; j + kBlock <= width; j += kBlock) {
    Lanes a = kFirst ? Lanes{} : load_lanes(out + j);
    Lanes b = kFirst ? Lanes{} : load_lanes(out + j + kLanes);
    for (int r = 0; r < kRows; ++r) {
      a += rows[r].weight * load_lanes(rows[r].row + j);
      b += rows[r].weight * load_lanes(rows[r].row + j + kLanes);
    }
    store_lanes(out + j, a);
    store_lanes(out + j + kLanes, b);
  }
  for (; j < width; ++j) {
    float sum = kFirst ? 0.0F : out[j];
    for (int r = 0; r < kRows; ++r) sum += rows[r].weight * static_cast<float>(rows[r].row[j]);
    out[j] = sum;
  }
}

// out (width) = sum over i < count of the WeightedRow that row_at(i) gives, four at a time. row_at(i) is asked for
// i < known as well, known >= count, to fetch what comes next; known = 0: nothing is to be fetched.
template <class RowAt>
inline void weighted_sum(int64_t count, int64_t known, int64_t width, const RowAt& row_at, float* out) {
  using Row = decltype(row_at(0));
  if (count < 4) {
    const Row rows[3] = {count > 0 ? row_at(0) : Row{}, count > 1 ? row_at(1) : Row{}, count > 2 ? row_at(2) : Row{}};
    if (count == 0) std::fill_n(out, width, 0.0F);
    if (count == 1) add_rows<1, true>(rows, width, out);
    if (count == 2) add_rows<2, true>(rows, width, out);
    if (count == 3) add_rows<3, true>(rows, width, out);
    return;
  }
  for (int64_t i = 0; i + 4 <= count; i += 4) {
    const Row rows[4] = {row_at(i), row_at(i + 1), row_at(i + 2), row_at(i + 3)};
    for (int64_t next = i + 4; next < std::min(i + 8, known); ++next) prefetch_beginning(row_at(next).row);
    if (i == 0)
      add_rows<4, true>(rows, width, out);
    else
      add_rows<4, false>(rows, width, out);
  }
  for (int64_t i = count / 4 * 4; i < count; ++i) {
    const Row row = row_at(i);
    add_rows<1, false>(&row, width, out);
  }
}

// out[r] = x . rows[r] for kRows rows of `width`; one of X and T is float.
template <int kRows, class X, class T>
[[gnu::always_inline]] inline void dot_rows(const X* x, const T* const* rows, int64_t width, float* out) {
  constexpr int64_t kBlock = 2 * kLanes;
  Lanes a[kRows];
  Lanes b[kRows];
  clear_lanes(a);
  clear_lanes(b);
  int64_t j = 0;
  for (; j + kBlock <= width; j += kBlock) {
    const Lanes first = load_lanes(x + j);
    const Lanes second = load_lanes(x + j + kLanes);
    for (int r = 0; r < kRows; ++r) {
      a[r] += first * load_lanes(rows[r] + j);
      b[r] += second * load_lanes(rows[r] + j + kLanes);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float sum = sum_lanes(a[r] + b[r]);
    for (int64_t i = j; i < width; ++i) sum += static_cast<float>(x[i]) * static_cast<float>(rows[r][i]);
    out[r] = sum;
  }
}

}  // namespace pkmesh::PKM_CPU
