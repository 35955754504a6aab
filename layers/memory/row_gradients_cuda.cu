// SPDX-License-Identifier: Apache-2.0
// A radix sort by row (cub's, which is stable), then the places where one row ends and the next begins. How many rows
// there are stays on the device: the host does not wait for it; arrays have room for the most there may be.
#include <thrust/iterator/counting_iterator.h>

#include <bit>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_select.cuh>
#include <limits>

#include "layers/memory/row_gradients.h"
#include "layers/memory/row_sums_cuda.h"
#include "runtime/cuda_scratch.h"

namespace pkmesh::cuda {
namespace {

constexpr int kThreads = 256;

int to_int(int64_t count) {
  PKM_CHECK(count >= 0 && count <= std::numeric_limits<int32_t>::max(), "{} records to sort", count);
  return static_cast<int>(count);
}

struct BeginsRun {
  const int32_t* rows;
  __device__ bool operator()(int64_t i) const { return i == 0 || rows[i] != rows[i - 1]; }
};

// A warp per pair.
__global__ void __launch_bounds__(kThreads)
    collect_kernel(const Selection* selections, const int32_t* pair_offsets, int64_t pairs, int64_t first_source,
                   int32_t* rows, Origin* origins) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / kWarp;
  const int64_t lane = threadIdx.x % kWarp;
  for (int64_t pair = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp; pair < pairs;
       pair += warps)
    for (int64_t i = pair_offsets[pair] + lane; i < pair_offsets[pair + 1]; i += kWarp) {
      rows[i] = selections[i].row;
      origins[i] = {selections[i].weight, static_cast<int32_t>(first_source + pair)};
    }
}

void collect(Stream& stream, std::span<const GradientPiece> pieces, int32_t* rows, Origin* origins) {
  for (const GradientPiece& piece : pieces) {
    const int64_t pairs = piece.pair_offsets.count() - 1;
    if (pairs > 0 && !piece.selections.empty()) {
      const int64_t blocks = std::min<int64_t>(ceil_divide(pairs, kThreads / kWarp), 65536);
      collect_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, native(stream)>>>(
          piece.selections.data(), piece.pair_offsets.data(), pairs, piece.first_source, rows, origins);
      PKM_CUDA(cudaGetLastError());
    }
    rows += piece.selections.count();
    origins += piece.selections.count();
  }
}

struct NameRuns {
  const int32_t* sorted_rows;
  int64_t records;
  const int64_t* runs;
  int64_t* offsets;  // (runs + 1), all but the last one known
  int32_t* rows;     // (runs)
  __device__ void operator()(int64_t u) const {
    if (u < *runs)
      rows[u] = sorted_rows[offsets[u]];
    else if (u == *runs)
      offsets[u] = records;
  }
};

// Block j looks for the full chunk that begins in contributions [j * kChunk, (j + 1) * kChunk). Of the rows that begin
// no later than there, only the last one can have it: an earlier row ends where this one begins or before, and a full
// chunk that begins in the span ends behind it.
__global__ void __launch_bounds__(kThreads)
    sum_chunks_kernel(SortedContributions sums, RowCount row_count, float* chunks) {
  const int64_t rows = row_count.value();
  const int64_t span = static_cast<int64_t>(blockIdx.x) * kChunk;
  // Row 0 begins no later, at 0.
  const int64_t u = lower_bound(1, rows, [&](int64_t row) { return sums.offsets[row] < span + kChunk; }) - 1;
  const int64_t row_begin = sums.offsets[u];
  const int64_t before = row_begin < span ? (span - row_begin + kChunk - 1) / kChunk : 0;  // chunks of u before it
  const int64_t begin = row_begin + before * kChunk;
  if (begin + kChunk > sums.offsets[u + 1]) return;
  for (int64_t column = static_cast<int64_t>(threadIdx.x) * 4; column < sums.width; column += blockDim.x * 4) {
    Pack<4> sum{};
    add_range(sums, begin, begin + kChunk, column, sum);
    store_pack(sum, chunks + begin / kChunk * sums.padded_width() + column);
  }
}

}  // namespace

int64_t sort_bytes(int64_t count) {
  size_t bytes = 0;
  cub::DoubleBuffer<int32_t> keys;
  cub::DoubleBuffer<Origin> values;
  PKM_CUDA(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, values, to_int(count)));
  return static_cast<int64_t>(bytes);
}

int64_t runs_bytes(int64_t count) {
  size_t bytes = 0;
  PKM_CUDA(cub::DeviceSelect::If(nullptr, bytes, thrust::counting_iterator<int64_t>(0), static_cast<int64_t*>(nullptr),
                                 static_cast<int64_t*>(nullptr), to_int(count), BeginsRun{nullptr}));
  return static_cast<int64_t>(bytes);
}

int sort_records(Stream& stream, RecordBuffers buffers, int64_t count, int64_t row_count, std::byte* temporary,
                 int64_t bytes) {
  if (count <= 1 || row_count <= 1) return 0;
  cub::DoubleBuffer<int32_t> keys(buffers.rows[0], buffers.rows[1]);
  cub::DoubleBuffer<Origin> values(buffers.origins[0], buffers.origins[1]);
  auto size = static_cast<size_t>(bytes);
  PKM_CUDA(cub::DeviceRadixSort::SortPairs(temporary, size, keys, values, to_int(count), 0,
                                           std::bit_width(static_cast<uint64_t>(row_count - 1)), native(stream)));
  PKM_CHECK(keys.selector == values.selector, "rows and their origins are in different buffers");
  return keys.selector;
}

void find_runs(Stream& stream, const int32_t* sorted_rows, int64_t count, int64_t* begins, int64_t* number,
               std::byte* temporary, int64_t bytes) {
  auto size = static_cast<size_t>(bytes);
  PKM_CUDA(cub::DeviceSelect::If(temporary, size, thrust::counting_iterator<int64_t>(0), begins, number, to_int(count),
                                 BeginsRun{sorted_rows}, native(stream)));
}

void sum_chunks(Stream& stream, const SortedContributions& sums, RowCount rows, int64_t contributions, float* chunks) {
  if (contributions < kChunk || sums.width == 0) return;  // no row has a full chunk
  const int threads = threads_for(ceil_divide(sums.width, 4), kThreads);
  sum_chunks_kernel<<<static_cast<unsigned>(ceil_divide(contributions, kChunk)), threads, 0, native(stream)>>>(
      sums, rows, chunks);
  PKM_CUDA(cudaGetLastError());
}

void sort_by_row(Stream& stream, std::span<const GradientPiece> pieces, int64_t local_rows, Vector<RowRecord> records,
                 Vector<RowRecord> scratch, const RowGradientsOut& out, int64_t&) {
  const int64_t total = records.count();
  if (total == 0) {
    PKM_CUDA(cudaMemsetAsync(out.offsets.data(), 0, sizeof(int64_t), native(stream)));
    PKM_CUDA(cudaMemsetAsync(out.touched.data(), 0, sizeof(int64_t), native(stream)));
    return;
  }
  // A RowRecord's memory holds an origin and a row: the origins first, as they want the alignment.
  static_assert(sizeof(RowRecord) >= sizeof(Origin) + sizeof(int32_t));
  auto* const origins = reinterpret_cast<Origin*>(records.data());
  auto* const spare_origins = reinterpret_cast<Origin*>(scratch.data());
  const RecordBuffers buffers = {
      {reinterpret_cast<int32_t*>(origins + total), reinterpret_cast<int32_t*>(spare_origins + total)},
      {origins, spare_origins}};
  ScratchPlan plan;
  const auto temporary = plan.add<std::byte>(std::max(sort_bytes(total), runs_bytes(total)));
  std::byte* const memory = plan.take(stream);

  collect(stream, pieces, buffers.rows[0], buffers.origins[0]);
  const int sorted = sort_records(stream, buffers, total, local_rows, temporary.in(memory), temporary.count);
  for_each(stream, total, Unpack{buffers.origins[sorted], out.weights.data(), out.sources.data()});
  find_runs(stream, buffers.rows[sorted], total, out.offsets.data(), out.touched.data(), temporary.in(memory),
            temporary.count);
  for_each(stream, out.rows.count() + 1,
           NameRuns{buffers.rows[sorted], total, out.touched.data(), out.offsets.data(), out.rows.data()});
}

}  // namespace pkmesh::cuda
