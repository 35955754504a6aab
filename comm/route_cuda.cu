// SPDX-License-Identifier: Apache-2.0
// A counting sort over cells (owner, token): what each cell holds, a scan over all cells, and every selection goes
// where its cell begins plus its number in the cell. A cell packs selections (high half) and pairs (low half) into one
// number, so that one scan places both. A token is one warp's business, so no cell is counted by two. Scratch: 16 bytes
// per cell.
#include <thrust/iterator/transform_iterator.h>

#include <cub/device/device_scan.cuh>

#include "comm/route.h"
#include "runtime/cuda_kernel.h"
#include "runtime/cuda_scratch.h"

namespace pkmesh::cuda {
namespace {

constexpr int kThreads = 128;
constexpr unsigned kAllLanes = 0xFFFFFFFFU;

using Cell = unsigned long long;
constexpr Cell kSelection = Cell{1} << 32;

__host__ __device__ int64_t selections_of(Cell cell) {
  return static_cast<int64_t>(cell >> 32);
}
__host__ __device__ int64_t pairs_of(Cell cell) {
  return static_cast<int64_t>(cell & 0xFFFFFFFFU);
}

// Calls body(i, address, cell, number) for each selection of one token: `cell` is its (owner, token), and `number`
// counts this step's earlier selections in the same cell. After each step of 32 selections, one lane per cell calls
// add(cell, selections of the step). A warp calls it together.
template <class Address, class Body, class Add>
__device__ void for_selections(int64_t token, int64_t tokens, const int32_t* offsets, const Address& address_of,
                               const Body& body, const Add& add) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t end = offsets[token + 1];
  for (int64_t begin = offsets[token]; begin < end; begin += kWarp) {
    const bool active = begin + lane < end;
    const int64_t i = begin + lane;
    const RowAddress address = active ? address_of(i) : RowAddress{-1, 0};
    const unsigned same = __match_any_sync(kAllLanes, address.owner);
    const int number = __popc(same & ((1U << lane) - 1U));
    const int64_t cell = address.owner * tokens + token;
    if (active) body(i, address, cell, number);
    __syncwarp();  // all have read their cells
    if (active && number == 0) add(cell, __popc(same));
    __syncwarp();  // the next step sees what was added
  }
}

// cells[owner * T + token] and addresses; token_offsets[t + 1] = the number of t's pairs.
__global__ void __launch_bounds__(kThreads)
    count_kernel(Leg leg, const Selection* asked, const int32_t* offsets, int64_t tokens, RowAddress* addresses,
                 Cell* cells, int32_t* token_offsets) {
  const int64_t token = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (token >= tokens) return;  // the whole warp
  int pairs = 0;
  for_selections(
      token, tokens, offsets, [&](int64_t i) { return leg.locate(asked[i].row); },
      [&](int64_t i, RowAddress address, int64_t, int) { addresses[i] = address; },
      [&](int64_t cell, int count) {
        const Cell before = cells[cell];
        const bool opens = before == 0;
        pairs += opens ? 1 : 0;
        cells[cell] = before + static_cast<Cell>(count) * kSelection + (opens ? 1 : 0);
      });
  pairs = lanes_sum(pairs);
  if (threadIdx.x % kWarp == 0) token_offsets[token + 1] = pairs;
  if (token == 0 && threadIdx.x == 0) token_offsets[0] = 0;
}

// places (R * T + 1): what lies in all cells before each.
struct CountOwners {
  const Cell* places;
  int64_t tokens;
  int64_t* selection_counts;
  int64_t* pair_counts;
  __device__ void operator()(int64_t owner) const {
    const Cell begin = places[owner * tokens];
    const Cell end = places[(owner + 1) * tokens];
    selection_counts[owner] = selections_of(end) - selections_of(begin);
    pair_counts[owner] = pairs_of(end) - pairs_of(begin);
  }
};

// Describes a token's pairs, by owner. Neighbouring threads read neighbouring cells.
struct DescribePairs {
  const Cell* cells;
  const Cell* places;
  int64_t tokens;
  int64_t owners;
  const int32_t* token_offsets;
  uint16_t* pair_lengths;
  int32_t* pair_token;
  int32_t* token_pairs;
  __device__ void operator()(int64_t token) const {
    int32_t next = token_offsets[token];
    for (int64_t owner = 0; owner < owners; ++owner) {
      const int64_t cell = owner * tokens + token;
      if (cells[cell] == 0) continue;
      const int64_t pair = pairs_of(places[cell]);
      pair_token[pair] = static_cast<int32_t>(token);
      pair_lengths[pair] = static_cast<uint16_t>(selections_of(cells[cell]));
      token_pairs[next++] = static_cast<int32_t>(pair);
    }
  }
};

// Moves the selections; their places advance on the way.
__global__ void __launch_bounds__(kThreads)
    place_kernel(const RowAddress* addresses, const Selection* asked, const int32_t* offsets, int64_t tokens,
                 Cell* places, Selection* selections, int32_t* order) {
  const int64_t token = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (token >= tokens) return;  // the whole warp
  for_selections(
      token, tokens, offsets, [&](int64_t i) { return addresses[i]; },
      [&](int64_t i, RowAddress address, int64_t cell, int number) {
        const int64_t place = selections_of(places[cell]) + number;
        selections[place] = {address.local, asked[i].weight};
        order[place] = static_cast<int32_t>(i);
      },
      [&](int64_t cell, int count) { places[cell] += static_cast<Cell>(count) * kSelection; });
}

struct SelectByToken {
  const int32_t* rows;
  const float* weights;
  int64_t tokens;
  int64_t per_token;
  Selection* selections;
  int32_t* offsets;
  __device__ void operator()(int64_t i) const {
    if (i < tokens * per_token) selections[i] = {rows[i], weights[i]};
    if (i <= tokens) offsets[i] = static_cast<int32_t>(i * per_token);
  }
};

struct Widen {
  __host__ __device__ int32_t operator()(uint16_t length) const { return length; }
};

struct CheckTotal {
  const int32_t* sum;
  int64_t total;
  __device__ void operator()(int64_t) const {
    if (*sum == total) return;
    printf("%lld selections arrived for pairs of %d\n", static_cast<long long>(total), *sum);
    __trap();
  }
};

}  // namespace

void sort_by_owner(Stream& stream, const Leg& leg, const Asked& asked, const OwnerOrder& out) {
  const int64_t tokens = asked.tokens();
  const int64_t owners = leg.peers();
  const int64_t cell_count = owners * tokens;
  const cudaStream_t native_stream = native(stream);
  if (tokens == 0) {
    PKM_CUDA(cudaMemsetAsync(out.token_offsets.data(), 0, sizeof(int32_t), native_stream));
    PKM_CUDA(cudaMemsetAsync(out.selection_counts.data(), 0, out.selection_counts.flat().size_bytes(), native_stream));
    PKM_CUDA(cudaMemsetAsync(out.pair_counts.data(), 0, out.pair_counts.flat().size_bytes(), native_stream));
    return;
  }
  size_t cells_bytes = 0;
  size_t tokens_bytes = 0;
  PKM_CUDA(cub::DeviceScan::ExclusiveSum(nullptr, cells_bytes, static_cast<Cell*>(nullptr), static_cast<Cell*>(nullptr),
                                         cell_count + 1));
  PKM_CUDA(cub::DeviceScan::InclusiveSum(nullptr, tokens_bytes, out.token_offsets.data(), out.token_offsets.data(),
                                         tokens + 1));
  ScratchPlan plan;
  const auto cells = plan.add<Cell>(cell_count + 1);
  const auto places = plan.add<Cell>(cell_count + 1);
  const auto temporary = plan.add<std::byte>(static_cast<int64_t>(std::max(cells_bytes, tokens_bytes)));
  std::byte* const memory = plan.take(stream);
  size_t bytes = static_cast<size_t>(temporary.count);

  PKM_CUDA(cudaMemsetAsync(cells.in(memory), 0, static_cast<size_t>(cell_count + 1) * sizeof(Cell), native_stream));
  const auto blocks = static_cast<unsigned>(ceil_divide(tokens, kThreads / kWarp));
  count_kernel<<<blocks, kThreads, 0, native_stream>>>(leg, asked.selections.data(), asked.offsets.data(), tokens,
                                                       out.addresses.data(), cells.in(memory),
                                                       out.token_offsets.data());
  PKM_CUDA(cudaGetLastError());
  PKM_CUDA(cub::DeviceScan::ExclusiveSum(temporary.in(memory), bytes, cells.in(memory), places.in(memory),
                                         cell_count + 1, native_stream));
  PKM_CUDA(cub::DeviceScan::InclusiveSum(temporary.in(memory), bytes, out.token_offsets.data(),
                                         out.token_offsets.data(), tokens + 1, native_stream));
  for_each(stream, owners, CountOwners{places.in(memory), tokens, out.selection_counts.data(), out.pair_counts.data()});
  for_each(stream, tokens,
           DescribePairs{cells.in(memory), places.in(memory), tokens, owners, out.token_offsets.data(),
                         out.pair_lengths.data(), out.pair_token.data(), out.token_pairs.data()});
  place_kernel<<<blocks, kThreads, 0, native_stream>>>(out.addresses.data(), asked.selections.data(),
                                                       asked.offsets.data(), tokens, places.in(memory),
                                                       out.selections.data(), out.order.data());
  PKM_CUDA(cudaGetLastError());
}

void select_by_token(Stream& stream, Matrix<const int32_t> rows, Matrix<const float> weights,
                     Vector<Selection> selections, Vector<int32_t> offsets) {
  for_each(stream, std::max(rows.count(), rows.size(0) + 1),
           SelectByToken{rows.data(), weights.data(), rows.size(0), rows.size(1), selections.data(), offsets.data()});
}

void add_lengths(Stream& stream, Vector<const uint16_t> lengths, int64_t total, Vector<int32_t> offsets) {
  PKM_CUDA(cudaMemsetAsync(offsets.data(), 0, sizeof(int32_t), native(stream)));
  if (!lengths.empty()) {
    size_t bytes = 0;
    // Sums in the type of what is written: lengths are of 16 bits, their sums are not.
    const auto widened = thrust::make_transform_iterator(lengths.data(), Widen{});
    PKM_CUDA(cub::DeviceScan::InclusiveSum(nullptr, bytes, widened, offsets.data() + 1, lengths.count()));
    std::byte* const temporary = scratch<std::byte>(stream, static_cast<int64_t>(bytes));
    PKM_CUDA(
        cub::DeviceScan::InclusiveSum(temporary, bytes, widened, offsets.data() + 1, lengths.count(), native(stream)));
  }
  for_each(stream, 1, CheckTotal{offsets.data() + lengths.count(), total});
}

}  // namespace pkmesh::cuda
