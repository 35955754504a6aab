// SPDX-License-Identifier: Apache-2.0
// For _cuda.cu files only: sums over the rows of matrices, column by column, in an order that the shape alone decides.
// Stage one sums chunks of rows into scratch, stage two sums the chunks in order.
#pragma once

#include "runtime/cuda_kernel.h"

namespace pkmesh::cuda {

constexpr int kColumnStrip = kWarp;  // columns of a block: one line of memory per row
constexpr int kColumnLanes = 8;      // rows that a block reads at once

// partial (chunks, kSums, width): term(row, column, sums) adds to each of the kSums sums what it has for that place.
template <int kSums, class Term>
__global__ void column_sums_kernel(int64_t rows, int64_t width, int64_t chunk_rows, Term term, double* partial) {
  __shared__ double shared[kColumnLanes][kSums][kColumnStrip];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnStrip + threadIdx.x;
  const int64_t first = blockIdx.y * chunk_rows;
  const int64_t last = first + chunk_rows < rows ? first + chunk_rows : rows;
  double sums[kSums] = {};
  if (column < width)
    for (int64_t row = first + threadIdx.y; row < last; row += kColumnLanes) term(row, column, sums);
  for (int s = 0; s < kSums; ++s) shared[threadIdx.y][s][threadIdx.x] = sums[s];
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int s = 0; s < kSums; ++s) {
    double total = 0.0;
    for (int lane = 0; lane < kColumnLanes; ++lane) total += shared[lane][s][threadIdx.x];
    partial[(blockIdx.y * static_cast<int64_t>(kSums) + s) * width + column] = total;
  }
}

template <int kSums>
struct ColumnSums {
  float* of[kSums];  // (width) each
};

// i runs over (kSums, width).
template <int kSums>
struct AddChunks {
  int64_t chunks, width;
  const double* partial;
  ColumnSums<kSums> sums;
  __device__ void operator()(int64_t i) const {
    double total = 0.0;
#pragma unroll 8
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[chunk * kSums * width + i];
    float& sum = sums.of[i / width][i % width];
    sum = static_cast<float>(sum + total);
  }
};

// sums.of[s][column] += sum over rows of the s-th term. Takes the stream's scratch.
template <int kSums, class Term>
void add_column_sums(Stream& stream, int64_t rows, int64_t width, const Term& term, const ColumnSums<kSums>& sums) {
  constexpr int64_t kChunkRows = 128;
  constexpr int64_t kMostChunks = 64;
  if (rows == 0 || width == 0) return;
  const int64_t chunk_rows = std::max(kChunkRows, ceil_divide(rows, kMostChunks));
  const int64_t chunks = ceil_divide(rows, chunk_rows);
  double* partial = scratch<double>(stream, chunks * kSums * width);
  const dim3 grid(static_cast<unsigned>(ceil_divide(width, kColumnStrip)), static_cast<unsigned>(chunks));
  column_sums_kernel<kSums>
      <<<grid, dim3(kColumnStrip, kColumnLanes), 0, native(stream)>>>(rows, width, chunk_rows, term, partial);
  PKM_CUDA(cudaGetLastError());
  for_each(stream, kSums * width, AddChunks<kSums>{chunks, width, partial, sums});
}

}  // namespace pkmesh::cuda
