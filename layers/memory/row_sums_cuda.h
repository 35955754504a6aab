// SPDX-License-Identifier: Apache-2.0
// For _cuda.cu files only: sums of weighted vectors by row, in a fixed order and without atomics.
//
// Contributions (weight, source) are sorted by row, stable. A row's sum begins with its full chunks of kChunk
// contributions, counted from the row's first, each added up by a block of its own, so that a hot row is not one
// block's business; the rest of the row follows. The order depends on the row's own contributions alone.
#pragma once

#include "layers/memory/row_gradients.h"
#include "layers/memory/rows_cuda.h"

namespace pkmesh::cuda {

// --- sorting ---

// What a contribution is made of: weight * vector number `source`.
struct alignas(8) Origin {
  float weight;
  int32_t source;
};

// For for_each(): what sorted origins say, in arrays of their own.
struct Unpack {
  const Origin* origins;
  float* weights;
  int32_t* sources;
  __device__ void operator()(int64_t i) const {
    const Origin origin = origins[i];
    weights[i] = origin.weight;
    sources[i] = origin.source;
  }
};

// Records and as much memory again.
struct RecordBuffers {
  int32_t* rows[2];
  Origin* origins[2];
};

// Bytes of temporary memory that sort_records() and find_runs() need.
int64_t sort_bytes(int64_t count);
int64_t runs_bytes(int64_t count);

// Sorts buffers 0 by row, stable; rows lie in [0, row_count). Returns the number of the buffers that hold the result.
int sort_records(Stream& stream, RecordBuffers buffers, int64_t count, int64_t row_count, std::byte* temporary,
                 int64_t bytes);

// begins = where a row differs from the one before it, in order; *number of them, on the device. count >= 1.
void find_runs(Stream& stream, const int32_t* sorted_rows, int64_t count, int64_t* begins, int64_t* number,
               std::byte* temporary, int64_t bytes);

// --- sums ---

constexpr int64_t kChunk = kGpuChunk;

// All that the sums of rows are made of. (pkmesh::RowSums is what the CPU's sum_by_row() leaves.)
struct SortedContributions {
  // Row u has contributions [offsets[u], offsets[u + 1]).
  const int64_t* offsets;  // (rows + 1)
  const float* weights;
  const int32_t* sources;
  const float* vectors;  // (sources, width)
  int64_t width;
  bool whole;           // vectors are aligned to 16 bytes, and width is a multiple of 4
  const float* chunks;  // (contributions / kChunk, padded width); made by sum_chunks()

  PKM_HOST_DEVICE int64_t padded_width() const { return (width + 3) / 4 * 4; }
};

// Floats of memory that sum_chunks() needs. A full chunk belongs to the span of kChunk contributions that it begins in:
// no other full chunk does.
inline int64_t chunk_floats(int64_t contributions, int64_t width) {
  return ceil_divide(contributions, kChunk) * ((width + 3) / 4 * 4);
}

// How many rows there are: the host knows it, or only the device does.
struct RowCount {
  RowCount(int64_t count) : known(count) {}
  RowCount(const int64_t* count) : on_device(count) {}
  int64_t known = 0;
  const int64_t* on_device = nullptr;
  __device__ int64_t value() const { return on_device == nullptr ? known : *on_device; }
};

// Fills sums.chunks, the memory of which is `chunks`. There are rows where there are contributions.
void sum_chunks(Stream& stream, const SortedContributions& sums, RowCount rows, int64_t contributions, float* chunks);

// sum += contributions [begin, end), columns [column, column + 4).
__device__ inline void add_range(const SortedContributions& sums, int64_t begin, int64_t end, int64_t column,
                                 Pack<4>& sum) {
  constexpr int kAtOnce = 8;
  int64_t c = begin;
  for (; c + kAtOnce <= end; c += kAtOnce) {
    Pack<4> packs[kAtOnce];
    float weights[kAtOnce];
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      weights[r] = sums.weights[c + r];
      packs[r] = load_four(sums.vectors + sums.sources[c + r] * sums.width, column, sums.width, sums.whole);
    }
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) add_scaled(weights[r], packs[r], sum);
  }
  for (; c < end; ++c)
    add_scaled(sums.weights[c], load_four(sums.vectors + sums.sources[c] * sums.width, column, sums.width, sums.whole),
               sum);
}

// Columns [column, column + 4) of row u's sum; those from `width` on are 0.
__device__ inline Pack<4> sum_row(const SortedContributions& sums, int64_t u, int64_t column) {
  const int64_t end = sums.offsets[u + 1];
  int64_t c = sums.offsets[u];
  Pack<4> sum{};
#pragma unroll 4
  for (; c + kChunk <= end; c += kChunk)
    add_scaled(1.0F, load_pack<4>(sums.chunks + c / kChunk * sums.padded_width() + column), sum);
  add_range(sums, c, end, column, sum);
  return sum;
}

}  // namespace pkmesh::cuda
