// SPDX-License-Identifier: Apache-2.0
// The backward pass sorts the tokens by table row (stably: CUB's radix sort), so that one block adds all gradients of a
// row, in the order of the tokens: no atomics, and bit for bit what the CPU computes.
#include <bit>
#include <cub/device/device_radix_sort.cuh>
#include <limits>

#include "layers/embedding.h"
#include "runtime/cuda_kernel.h"
#include "runtime/cuda_scratch.h"

namespace pkmesh::cuda {
namespace {

constexpr int kThreads = 256;

// One block per token.
__global__ void forward_kernel(const int32_t* tokens, const int32_t* positions, const float* __restrict__ token_table,
                               int64_t vocabulary, const float* __restrict__ position_table, int64_t context,
                               int64_t width, float* __restrict__ y) {
  const int64_t t = blockIdx.x;
  check_index("embedding: token", tokens[t], vocabulary);
  check_index("embedding: position", positions[t], context);
  const float* token = token_table + tokens[t] * width;
  const float* position = position_table + positions[t] * width;
  for (int64_t j = threadIdx.x; j < width; j += kThreads) y[t * width + j] = token[j] + position[j];
}

struct Count {
  int32_t* numbers;
  __device__ void operator()(int64_t i) const { numbers[i] = static_cast<int32_t>(i); }
};

// One block per place in the sorted order; the first place of a row does the row's whole run.
__global__ void add_runs_kernel(const uint32_t* rows, const int32_t* order, int64_t count, const float* __restrict__ dy,
                                int64_t width, int64_t table_rows, float* table) {
  const int64_t first = blockIdx.x;
  const uint32_t row = rows[first];
  check_index("embedding: row", row, table_rows);
  if (first > 0 && rows[first - 1] == row) return;
  int64_t last = first + 1;
  while (last < count && rows[last] == row) ++last;
  for (int64_t j = threadIdx.x; j < width; j += kThreads) {
    float sum = table[row * width + j];
#pragma unroll 4
    for (int64_t place = first; place < last; ++place) sum += dy[order[place] * width + j];
    table[row * width + j] = sum;
  }
}

// table[rows[t]] += dy[t].
void add_rows(Stream& stream, Vector<const int32_t> rows, Matrix<const float> dy, Matrix<float> table) {
  const int64_t count = rows.count();
  if (count == 0) return;
  PKM_CHECK(count <= std::numeric_limits<int>::max(), "embedding: {} tokens are too many for one sort", count);
  const auto items = static_cast<int>(count);
  const int bits = std::max(1, static_cast<int>(std::bit_width(static_cast<uint64_t>(table.size(0)))));
  const auto* keys = reinterpret_cast<const uint32_t*>(rows.data());  // none is negative, or the kernel above stops
  uint32_t* no_keys = nullptr;
  int32_t* no_order = nullptr;
  size_t sort_bytes = 0;
  PKM_CUDA(cub::DeviceRadixSort::SortPairs(nullptr, sort_bytes, keys, no_keys, no_order, no_order, items, 0, bits,
                                           native(stream)));
  ScratchPlan plan;
  const auto sort_memory = plan.add<std::byte>(static_cast<int64_t>(sort_bytes));
  const auto numbers = plan.add<int32_t>(count);
  const auto order = plan.add<int32_t>(count);
  const auto sorted = plan.add<uint32_t>(count);
  std::byte* const memory = plan.take(stream);
  for_each(stream, count, Count{numbers.in(memory)});
  PKM_CUDA(cub::DeviceRadixSort::SortPairs(sort_memory.in(memory), sort_bytes, keys, sorted.in(memory),
                                           numbers.in(memory), order.in(memory), items, 0, bits, native(stream)));
  add_runs_kernel<<<static_cast<unsigned>(count), kThreads, 0, native(stream)>>>(
      sorted.in(memory), order.in(memory), count, dy.data(), table.size(1), table.size(0), table.data());
  PKM_CUDA(cudaGetLastError());
}

struct CountPositions {
  int64_t length;
  int32_t* positions;
  __device__ void operator()(int64_t t) const { positions[t] = static_cast<int32_t>(t % length); }
};

}  // namespace

void embedding_forward(Stream& stream, Vector<const int32_t> tokens, Vector<const int32_t> positions,
                       Matrix<const float> token_table, Matrix<const float> position_table, Matrix<float> y) {
  if (tokens.empty()) return;
  forward_kernel<<<static_cast<unsigned>(tokens.count()), kThreads, 0, native(stream)>>>(
      tokens.data(), positions.data(), token_table.data(), token_table.size(0), position_table.data(),
      position_table.size(0), y.size(1), y.data());
  PKM_CUDA(cudaGetLastError());
}

void embedding_backward(Stream& stream, Vector<const int32_t> tokens, Vector<const int32_t> positions,
                        Matrix<const float> dy, Matrix<float> dtoken_table, Matrix<float> dposition_table) {
  add_rows(stream, tokens, dy, dtoken_table);
  add_rows(stream, positions, dy, dposition_table);
}

void count_positions(Stream& stream, int64_t length, Vector<int32_t> positions) {
  for_each(stream, positions.count(), CountPositions{length, positions.data()});
}

}  // namespace pkmesh::cuda
