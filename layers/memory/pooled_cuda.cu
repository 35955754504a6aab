// SPDX-License-Identifier: Apache-2.0
// Each row that is read is read once, from memory to registers, in 16-byte accesses, eight rows at a time per thread
// (rows that are not aligned go element by element). Nothing is shared between threads but the cache: sums run in the
// order of the selections, whatever the launch.
#include "layers/memory/pooled.h"
#include "layers/memory/rows_cuda.h"

namespace pkmesh::cuda {
namespace {

constexpr int kThreads = 256;

struct Term {
  int32_t row;
  float weight;
};

struct SelectedTerms {
  const Selection* selections;
  __device__ Term operator()(int64_t i) const { return {selections[i].row, selections[i].weight}; }
};

struct ListedTerms {  // of weight 1
  const int32_t* rows;
  __device__ Term operator()(int64_t i) const { return {rows[i], 1.0F}; }
};

// sum += terms [i, i + kRows), all loads before the first addition.
template <int kRows, int kPack, class T, class Terms>
__device__ inline void add_rows(const T* rows, int64_t width, const Terms& terms, int64_t i, Pack<kPack>& sum) {
  Pack<kPack> packs[kRows];
  float weights[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const Term term = terms(i + r);
    weights[r] = term.weight;
    packs[r] = load_pack<kPack>(rows + term.row * width);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) add_scaled(weights[r], packs[r], sum);
}

// Block (x, y): columns of piece y of out[x] = sum over terms [offsets[x], offsets[x + 1]) of weight * row.
template <int kPack, class T, class Terms>
__global__ void __launch_bounds__(kThreads)
    weighted_sum_kernel(const T* __restrict__ rows, int64_t width, const int32_t* __restrict__ offsets, Terms terms,
                        float* __restrict__ out) {
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kPack;
  if (column >= width) return;
  const int64_t end = offsets[blockIdx.x + 1];
  int64_t i = offsets[blockIdx.x];
  Pack<kPack> sum{};
  for (; i + 8 <= end; i += 8) add_rows<8>(rows + column, width, terms, i, sum);
  if (i + 4 <= end) {
    add_rows<4>(rows + column, width, terms, i, sum);
    i += 4;
  }
  for (; i < end; ++i) add_rows<1>(rows + column, width, terms, i, sum);
  store_pack(sum, out + blockIdx.x * width + column);
}

template <int kPack, class T, class Terms>
void launch_weighted_sum(Stream& stream, const T* rows, Vector<const int32_t> offsets, const Terms& terms,
                         Matrix<float> out) {
  const int64_t packs = ceil_divide(out.size(1), kPack);
  const int threads = threads_for(packs, kThreads);
  const dim3 grid(static_cast<unsigned>(out.size(0)), static_cast<unsigned>(ceil_divide(packs, threads)));
  weighted_sum_kernel<kPack>
      <<<grid, threads, 0, native(stream)>>>(rows, out.size(1), offsets.data(), terms, out.data());
  PKM_CUDA(cudaGetLastError());
}

template <class T, class Terms>
void weighted_sum(Stream& stream, const T* rows, Vector<const int32_t> offsets, const Terms& terms, Matrix<float> out) {
  if (out.empty()) return;
  const int64_t width = out.size(1);
  if (rows_aligned(rows, width, 16) && rows_aligned(out.data(), width, 16))
    launch_weighted_sum<kWide<T>>(stream, rows, offsets, terms, out);
  else
    launch_weighted_sum<1>(stream, rows, offsets, terms, out);
}

// A block per pair. A warp takes four of the pair's rows at once; the gradient comes from the nearest cache, once for
// the four.
template <int kPack, class T>
__global__ void __launch_bounds__(kThreads)
    dots_kernel(const T* __restrict__ rows, int64_t width, const Selection* __restrict__ selections,
                const int32_t* __restrict__ pair_offsets, const float* __restrict__ gradients,
                float* __restrict__ dweights) {
  constexpr int kRows = 4;
  const int64_t warps = blockDim.x / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const float* const gradient = gradients + blockIdx.x * width;
  const int64_t end = pair_offsets[blockIdx.x + 1];
  for (int64_t i = pair_offsets[blockIdx.x] + threadIdx.x / kWarp * kRows; i < end; i += warps * kRows) {
    const T* row[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r)  // behind the end: the last row once more, for nobody
      row[r] = rows + selections[i + r < end ? i + r : end - 1].row * width;
    float sums[kRows] = {};
    for (int64_t column = lane * kPack; column < width; column += kWarp * kPack) {
      Pack<kPack> packs[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) packs[r] = load_pack<kPack>(row[r] + column);
      const Pack<kPack> factor = load_pack<kPack>(gradient + column);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int j = 0; j < kPack; ++j) sums[r] += factor.at[j] * packs[r].at[j];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = lanes_sum(sums[r]);
      if (lane == 0 && i + r < end) dweights[i + r] = sum;
    }
  }
}

template <int kPack, class T>
void launch_dots(Stream& stream, Matrix<T> rows, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
                 Matrix<const float> gradients, Vector<float> dweights) {
  constexpr int kDotThreads = 128;
  dots_kernel<kPack><<<static_cast<unsigned>(gradients.size(0)), kDotThreads, 0, native(stream)>>>(
      static_cast<const T*>(rows.data()), rows.size(1), selections.data(), pair_offsets.data(), gradients.data(),
      dweights.data());
  PKM_CUDA(cudaGetLastError());
}

struct CopyElement {
  const float* from;
  const int32_t* which;
  float* to;
  int64_t width;
  __device__ void operator()(int64_t i) const { to[i] = from[which[i / width] * width + i % width]; }
};

struct CopyPack {
  const float4* from;
  const int32_t* which;
  float4* to;
  int64_t packs;  // per row
  __device__ void operator()(int64_t i) const { to[i] = from[which[i / packs] * packs + i % packs]; }
};

struct Scatter {
  const float* from;
  const int32_t* order;
  float* to;
  __device__ void operator()(int64_t i) const { to[order[i]] = from[i]; }
};

}  // namespace

void pooled_gather(Stream& stream, TableRows rows, Vector<const Selection> selections,
                   Vector<const int32_t> pair_offsets, Matrix<float> partials) {
  std::visit(
      [&](auto matrix) {
        weighted_sum(stream, matrix.data(), pair_offsets, SelectedTerms{selections.data()}, partials);
      },
      rows);
}

void weight_gradients(Stream& stream, TableRows rows, Vector<const Selection> selections,
                      Vector<const int32_t> pair_offsets, Matrix<const float> gradients, Vector<float> dweights) {
  if (dweights.empty()) return;
  std::visit(
      [&]<class T>(Matrix<T> matrix) {
        const int64_t width = matrix.size(1);
        if (rows_aligned(matrix.data(), width, 16) && rows_aligned(gradients.data(), width, 16))
          launch_dots<kWide<T>>(stream, matrix, selections, pair_offsets, gradients, dweights);
        else
          launch_dots<1>(stream, matrix, selections, pair_offsets, gradients, dweights);
      },
      rows);
}

void combine_partials(Stream& stream, Matrix<const float> partials, Vector<const int32_t> token_offsets,
                      Vector<const int32_t> token_pairs, Matrix<float> out) {
  weighted_sum(stream, partials.data(), token_offsets, ListedTerms{token_pairs.data()}, out);
}

void copy_rows(Stream& stream, Matrix<const float> from, Vector<const int32_t> which, Matrix<float> to) {
  const int64_t width = from.size(1);
  if (rows_aligned(from.data(), width, 16) && rows_aligned(to.data(), width, 16))
    for_each(stream, to.count() / 4,
             CopyPack{reinterpret_cast<const float4*>(from.data()), which.data(), reinterpret_cast<float4*>(to.data()),
                      width / 4});
  else
    for_each(stream, to.count(), CopyElement{from.data(), which.data(), to.data(), width});
}

void scatter_scalars(Stream& stream, Vector<const float> from, Vector<const int32_t> order, Vector<float> to) {
  for_each(stream, from.count(), Scatter{from.data(), order.data(), to.data()});
}

}  // namespace pkmesh::cuda
