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
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));

[[gnu::always_inline]] inline Lanes load_lanes(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}
[[gnu::always_inline]] inline Lanes load_lanes(const bf16* from) {
  using Half = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));
  using Full = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
  Half half;
  std::memcpy(&half, from, sizeof(half));
  const Full full = __builtin_convertvector(half, Full) << 16;
  Lanes lanes;
  std::memcpy(&lanes, &full, sizeof(lanes));
  return lanes;
}
[[gnu::always_inline]] inline void store_lanes(float* to, Lanes lanes) {
  std::memcpy(to, &lanes, sizeof(lanes));
}

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
  for (; j + kLanes <= width; j += kLanes) {
    Lanes sum = kFirst ? Lanes{} : load_lanes(out + j);
    for (int r = 0; r < kRows; ++r) sum += rows[r].weight * load_lanes(rows[r].row + j);
    store_lanes(out + j, sum);
  }
  for (; j < width; ++j) {
    float sum = kFirst ? 0.0F : out[j];
    for (int r = 0; r < kRows; ++r) sum += rows[r].weight * static_cast<float>(rows[r].row[j]);
    out[j] = sum;
  }
}

// out (width) = sum over i < count of the WeightedRow that row_at(i) gives, four at a time.
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
  Lanes sums[kRows] = {};
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) {
    const Lanes factor = load_lanes(x + j);
    for (int r = 0; r < kRows; ++r) sums[r] += factor * load_lanes(rows[r] + j);
  }
  for (int r = 0; r < kRows; ++r) {
    float sum = sum_lanes(sums[r]);
    for (int64_t i = j; i < width; ++i) sum += x[i] * static_cast<float>(rows[r][i]);
    out[r] = sum;
  }
}

}  // namespace pkmesh::cpu
