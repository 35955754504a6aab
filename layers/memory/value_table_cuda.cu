// SPDX-License-Identifier: Apache-2.0
// Usage: selections sorted by row, then a warp per row that was read. The sort makes the order of a row's sum that of
// the tokens, without atomics; rows that were not read cost nothing.
#include "layers/memory/row_sums_cuda.h"
#include "layers/memory/value_table.h"
#include "runtime/cuda_scratch.h"

namespace pkmesh::cuda {
namespace {

constexpr int kThreads = 256;

struct ToRecord {
  const Selection* selections;
  int32_t* rows;
  Origin* origins;
  __device__ void operator()(int64_t i) const {
    rows[i] = selections[i].row;
    origins[i] = {selections[i].weight, 0};
  }
};

__global__ void __launch_bounds__(kThreads)
    add_usage_kernel(const int32_t* rows, const Origin* origins, int64_t count, const int64_t* begins,
                     const int64_t* number, uint32_t* counts, float* weights) {
  const int64_t runs = *number;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / kWarp;
  const int64_t lane = threadIdx.x % kWarp;
  for (int64_t run = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp; run < runs; run += warps) {
    const int64_t begin = begins[run];
    const int64_t end = run + 1 < runs ? begins[run + 1] : count;
    float sum = 0;
    for (int64_t i = begin + lane; i < end; i += kWarp) sum += origins[i].weight;
    sum = lanes_sum(sum);
    if (lane != 0) continue;
    const int32_t row = rows[begin];
    counts[row] += static_cast<uint32_t>(end - begin);
    weights[row] += sum;
  }
}

struct MarkBest {
  const int32_t* slots;
  int64_t neighbours;
  uint32_t* bits;
  // An atomic OR of bits: the order does not matter.
  __device__ void operator()(int64_t head) const {
    const int32_t slot = slots[head * neighbours];
    atomicOr(bits + slot / 32, 1U << (slot % 32));
  }
};

// Four columns of a row, from one block of random numbers: as Random::normals, in the device's own logarithm and sine.
template <class T>
struct DrawRows {
  Random random;
  float scale;
  Placement placement;
  int rank;
  int64_t width;
  int64_t fours;  // per row
  T* rows;
  __device__ void operator()(int64_t i) const {
    const int64_t local = i / fours;
    const int64_t column = i % fours * 4;
    const auto row = static_cast<uint64_t>(placement.global_row(rank, static_cast<int32_t>(local)));
    const std::array<uint32_t, 4> bits =
        random.block(row * static_cast<uint64_t>(fours) + static_cast<uint64_t>(i % fours));
    float drawn[4];
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      const float radius = sqrtf(-2.0F * logf(1.0F - Random::to_unit(bits[j])));
      const float angle = 2.0F * 3.14159265358979F * Random::to_unit(bits[j + 1]);
      drawn[j] = radius * cosf(angle);
      drawn[j + 1] = radius * sinf(angle);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (column + j < width) rows[local * width + column + j] = T(drawn[j] * scale);
  }
};

}  // namespace

void count_usage(Stream& stream, Vector<const Selection> selections, Vector<uint32_t> counts, Vector<float> weights) {
  const int64_t count = selections.count();
  if (count == 0) return;
  ScratchPlan plan;
  const auto rows = plan.add<int32_t>(count);
  const auto spare_rows = plan.add<int32_t>(count);
  const auto origins = plan.add<Origin>(count);
  const auto spare_origins = plan.add<Origin>(count);
  const auto begins = plan.add<int64_t>(std::min(count, counts.count()));
  const auto number = plan.add<int64_t>(1);
  const auto temporary = plan.add<std::byte>(std::max(sort_bytes(count), runs_bytes(count)));
  std::byte* const memory = plan.take(stream);
  const RecordBuffers buffers = {{rows.in(memory), spare_rows.in(memory)},
                                 {origins.in(memory), spare_origins.in(memory)}};
  for_each(stream, count, ToRecord{selections.data(), buffers.rows[0], buffers.origins[0]});
  const int sorted = sort_records(stream, buffers, count, counts.count(), temporary.in(memory), temporary.count);
  find_runs(stream, buffers.rows[sorted], count, begins.in(memory), number.in(memory), temporary.in(memory),
            temporary.count);
  const int64_t blocks = std::min<int64_t>(ceil_divide(begins.count, kThreads / kWarp), 4096);
  add_usage_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, native(stream)>>>(
      buffers.rows[sorted], buffers.origins[sorted], count, begins.in(memory), number.in(memory), counts.data(),
      weights.data());
  PKM_CUDA(cudaGetLastError());
}

void mark_best(Stream& stream, Matrix<const int32_t> slots, int64_t neighbours, Vector<uint32_t> bits) {
  for_each(stream, slots.count() / neighbours, MarkBest{slots.data(), neighbours, bits.data()});
}

void draw_rows(Stream& stream, const Random& random, float scale, const Placement& placement, int rank,
               TableRows rows) {
  const int64_t width = width_of(rows);
  const int64_t fours = ceil_divide(width, 4);
  std::visit(
      [&]<class T>(Matrix<T> matrix) {
        for_each(stream, matrix.size(0) * fours,
                 DrawRows<T>{random, scale, placement, rank, width, fours, matrix.data()});
      },
      rows);
}

}  // namespace pkmesh::cuda
