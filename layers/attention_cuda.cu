// SPDX-License-Identifier: Apache-2.0
// FlashAttention (arXiv 2205.14135) in fp32: one block per (sequence, head, tile), scores exist tile by tile in shared
// memory. The backward pass runs twice over the tiles: a block owns keys and gathers dK, dV from the queries that see
// them, then a block owns queries and gathers dQ from the keys that they see. So every element is written by one
// thread, in one order, and results repeat bit for bit.
#include <cmath>

#include "layers/attention.h"
#include "layers/attention_tiles_cuda.h"
#include "layers/dropout_cuda.h"

namespace pkmesh::cuda {
namespace {

struct Problem {
  int64_t context, heads, width;  // of one head
  int64_t tokens;
  const float* qkv;
  DropoutMask mask;
  bool drops;
  float scale;  // of scores

  // Row 0 of this block's sequence and head: `part` is 0 queries, 1 keys, 2 values.
  __device__ int64_t packed(int part) const {
    return (pair() / heads * context * 3 + part) * heads * width + pair() % heads * width;
  }
  __device__ int64_t unpacked() const { return pair() / heads * context * heads * width + pair() % heads * width; }
  __device__ int64_t packed_stride() const { return 3 * heads * width; }
  __device__ int64_t unpacked_stride() const { return heads * width; }
  __device__ int64_t per_query() const { return pair() % heads * tokens + pair() / heads * context; }  // logsumexp
  __device__ int64_t pair() const { return blockIdx.x; }  // sequence * heads + head
  __device__ float factor(int64_t query, int64_t key) const {
    return drops ? mask.factor((pair() * context + query) * context + key) : 1.0F;
  }
};

template <class T>
__device__ void load_part(const Problem& p, int part, int64_t first, float* tile) {
  load_tile<T>(p.qkv + p.packed(part), p.packed_stride(), first, p.context, p.width, tile);
}

// The running softmax of a thread's rows. All 16 lanes of a row hold the same numbers.
template <class T>
struct OnlineSoftmax {
  float top[T::kRows];
  float sum[T::kRows];

  __device__ OnlineSoftmax() {
#pragma unroll
    for (int i = 0; i < T::kRows; ++i) {
      top[i] = -INFINITY;
      sum[i] = 0.0F;
    }
  }

  // Takes in scores of queries [query, ...) and keys [key, ...), leaves their weights after dropout (0 for keys that
  // the query does not see), and scales what was summed before. Every query sees a key of the first tile: tops are
  // finite.
  __device__ void take(const Problem& p, int64_t query, int64_t key, typename T::Square& scores,
                       typename T::Strip& output) {
#pragma unroll
    for (int i = 0; i < T::kRows; ++i) {
      const int64_t row = query + tile_row(i);
      float highest = top[i];
#pragma unroll
      for (int j = 0; j < T::kRows; ++j) {
        const int64_t column = key + tile_column(j);
        scores[i][j] = column <= row && column < p.context ? scores[i][j] * p.scale : -INFINITY;
        highest = fmaxf(highest, scores[i][j]);
      }
      highest = lanes_max<kSide>(highest);
      const float rescale = expf(top[i] - highest);
      float total = 0.0F;
#pragma unroll
      for (int j = 0; j < T::kRows; ++j) {
        const float weight = expf(scores[i][j] - highest);
        total += weight;
        scores[i][j] = weight * p.factor(row, key + tile_column(j));
      }
      sum[i] = sum[i] * rescale + lanes_sum<kSide>(total);
      top[i] = highest;
#pragma unroll
      for (int c = 0; c < T::kColumns; ++c) output[i][c] *= rescale;
    }
  }
};

template <class T>
constexpr int64_t forward_bytes() {
  return (2 * T::kElements + T::kScores) * static_cast<int64_t>(sizeof(float));
}

// Shared memory: queries, keys or values, scores.
template <class T>
__global__ void __launch_bounds__(kTileThreads) forward_kernel(Problem p, float* output, float* logsumexp) {
  extern __shared__ float shared[];
  float* const queries = shared;
  float* const others = queries + T::kElements;
  float* const scores = others + T::kElements;
  const int64_t first = static_cast<int64_t>(gridDim.y - 1 - blockIdx.y) * T::kTile;  // the longest rows start first
  load_part<T>(p, 0, first, queries);
  OnlineSoftmax<T> softmax;
  typename T::Strip sum = {};
  for (int64_t key = 0; key <= first; key += T::kTile) {
    __syncthreads();  // the former values and scores are done with
    load_part<T>(p, 1, key, others);
    __syncthreads();
    typename T::Square square;
    multiply_rows<T>(queries, others, square);
    softmax.take(p, first, key, square, sum);
    store_square<T>(square, scores);
    __syncthreads();  // the keys are done with
    load_part<T>(p, 2, key, others);
    __syncthreads();
    add_product<T, false>(scores, others, sum);
  }
  float factor[T::kRows];
#pragma unroll
  for (int i = 0; i < T::kRows; ++i) {
    factor[i] = 1.0F / softmax.sum[i];
    if (tile_column(0) == 0 && first + tile_row(i) < p.context)
      logsumexp[p.per_query() + first + tile_row(i)] = softmax.top[i] + logf(softmax.sum[i]);
  }
  store_strip<T>(sum, factor, output + p.unpacked(), p.unpacked_stride(), first, p.context, p.width);
}

// dots (heads, T) = output . doutput within a head: the sum over keys of weight * dweight (the paper's appendix B).
// One warp per (token, head), in the order of memory.
__global__ void output_dots_kernel(const float* output, const float* doutput, int64_t tokens, int64_t heads,
                                   int64_t width, float* dots) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (i >= tokens * heads) return;
  float sum = 0.0F;
  for (int64_t j = threadIdx.x % kWarp; j < width; j += kWarp) sum += output[i * width + j] * doutput[i * width + j];
  sum = lanes_sum(sum);
  if (threadIdx.x % kWarp == 0) dots[i % heads * tokens + i / heads] = sum;
}

// What the backward pass reads beside qkv.
struct Saved {
  const float* logsumexp;  // (heads, T)
  const float* dots;       // (heads, T)
  const float* doutput;    // (T, d)
};

// The four tiles of the backward pass, and one of scores.
template <class T>
struct BackwardTiles {
  float* queries;
  float* keys;
  float* values;
  float* doutput;
  float* scores;

  __device__ explicit BackwardTiles(float* shared)
      : queries(shared),
        keys(queries + T::kElements),
        values(keys + T::kElements),
        doutput(values + T::kElements),
        scores(doutput + T::kElements) {}
  __device__ void load_queries(const Problem& p, const Saved& saved, int64_t first) const {
    load_part<T>(p, 0, first, queries);
    load_tile<T>(saved.doutput + p.unpacked(), p.unpacked_stride(), first, p.context, p.width, doutput);
  }
  __device__ void load_keys(const Problem& p, int64_t first) const {
    load_part<T>(p, 1, first, keys);
    load_part<T>(p, 2, first, values);
  }
  static constexpr int64_t bytes() { return (4 * T::kElements + T::kScores) * static_cast<int64_t>(sizeof(float)); }
};

// For queries [query, ...) and keys [key, ...), both in the tiles: the weights after dropout, and the gradients of the
// scores before they were scaled by p.scale / p.scale. Both are 0 where the query does not see the key.
template <class T>
__device__ void weights_and_gradients(const Problem& p, const Saved& saved, const BackwardTiles<T>& tiles,
                                      int64_t query, int64_t key, typename T::Square& weights,
                                      typename T::Square& dscores) {
  multiply_rows<T>(tiles.queries, tiles.keys, weights);
  multiply_rows<T>(tiles.doutput, tiles.values, dscores);
#pragma unroll
  for (int i = 0; i < T::kRows; ++i) {
    const int64_t row = query + tile_row(i);
    const bool exists = row < p.context;
    const float logsumexp = exists ? saved.logsumexp[p.per_query() + row] : 0.0F;
    const float dot = exists ? saved.dots[p.per_query() + row] : 0.0F;
#pragma unroll
    for (int j = 0; j < T::kRows; ++j) {
      const int64_t column = key + tile_column(j);
      const bool seen = exists && column <= row;
      const float weight = seen ? expf(weights[i][j] * p.scale - logsumexp) : 0.0F;
      const float factor = seen ? p.factor(row, column) : 0.0F;
      weights[i][j] = weight * factor;
      dscores[i][j] = seen ? weight * (dscores[i][j] * factor - dot) : 0.0F;
    }
  }
}

template <class T>
__device__ void store_gradient(const Problem& p, const typename T::Strip& strip, float scale, int part, int64_t first,
                               float* dqkv) {
  float factor[T::kRows];
#pragma unroll
  for (int i = 0; i < T::kRows; ++i) factor[i] = scale;
  store_strip<T>(strip, factor, dqkv + p.packed(part), p.packed_stride(), first, p.context, p.width);
}

// One tile of keys: their gradients and those of their values.
template <class T>
__global__ void __launch_bounds__(kTileThreads) keys_backward_kernel(Problem p, Saved saved, float* dqkv) {
  extern __shared__ float shared[];
  const BackwardTiles<T> tiles(shared);
  const int64_t key = static_cast<int64_t>(blockIdx.y) * T::kTile;
  tiles.load_keys(p, key);
  typename T::Strip dkeys = {};
  typename T::Strip dvalues = {};
  for (int64_t query = key; query < p.context; query += T::kTile) {
    __syncthreads();  // the former queries and scores are done with
    tiles.load_queries(p, saved, query);
    __syncthreads();
    typename T::Square weights;
    typename T::Square dscores;
    weights_and_gradients<T>(p, saved, tiles, query, key, weights, dscores);
    store_square<T>(weights, tiles.scores);
    __syncthreads();
    add_product<T, true>(tiles.scores, tiles.doutput, dvalues);
    __syncthreads();  // the weights are done with
    store_square<T>(dscores, tiles.scores);
    __syncthreads();
    add_product<T, true>(tiles.scores, tiles.queries, dkeys);
  }
  store_gradient<T>(p, dkeys, p.scale, 1, key, dqkv);
  store_gradient<T>(p, dvalues, 1.0F, 2, key, dqkv);
}

// One tile of queries: their gradients.
template <class T>
__global__ void __launch_bounds__(kTileThreads) queries_backward_kernel(Problem p, Saved saved, float* dqkv) {
  extern __shared__ float shared[];
  const BackwardTiles<T> tiles(shared);
  const int64_t query = static_cast<int64_t>(gridDim.y - 1 - blockIdx.y) * T::kTile;
  tiles.load_queries(p, saved, query);
  typename T::Strip dqueries = {};
  for (int64_t key = 0; key <= query; key += T::kTile) {
    __syncthreads();  // the former keys and scores are done with
    tiles.load_keys(p, key);
    __syncthreads();
    typename T::Square weights;
    typename T::Square dscores;
    weights_and_gradients<T>(p, saved, tiles, query, key, weights, dscores);
    store_square<T>(dscores, tiles.scores);
    __syncthreads();
    add_product<T, false>(tiles.scores, tiles.keys, dqueries);
  }
  store_gradient<T>(p, dqueries, p.scale, 0, query, dqkv);
}

Problem make_problem(const AttentionShape& shape, Matrix<const float> qkv, const Dropout& mask) {
  const int64_t width = qkv.size(1) / 3 / shape.heads;
  return {.context = shape.context,
          .heads = shape.heads,
          .width = width,
          .tokens = shape.tokens(),
          .qkv = qkv.data(),
          .mask = DropoutMask(mask),
          .drops = mask.probability > 0.0F,
          .scale = 1.0F / std::sqrt(static_cast<float>(width))};
}

// Turing lends a block 64 KiB, every other device from Volta on 96 or more.
void require_shared(Device gpu, int64_t bytes) {
  int most = 0;
  PKM_CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu.index));
  if (bytes > most)
    user_error(
        "attention: {} lends a block {} KiB of shared memory, and {} are needed; set train.device: CPU, or use a GPU "
        "of another generation than Turing",
        to_string(gpu), most >> 10, (bytes + 1023) >> 10);
}

// One block per (sequence and head, tile), with dynamic shared memory beyond the 48 KiB that are had without asking.
template <class T, class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Stream& stream, const AttentionShape& shape, int64_t shared_bytes,
            const Arguments&... arguments) {
  const dim3 grid(static_cast<unsigned>(shape.sequences * shape.heads),
                  static_cast<unsigned>(ceil_divide(shape.context, T::kTile)));
  require_shared(stream.device(), shared_bytes);
  PKM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  kernel<<<grid, kTileThreads, static_cast<size_t>(shared_bytes), native(stream)>>>(arguments...);
  PKM_CUDA(cudaGetLastError());
}

template <class T>
void forward(Stream& stream, const AttentionShape& shape, const Problem& problem, float* output, float* logsumexp) {
  launch<T>(forward_kernel<T>, stream, shape, forward_bytes<T>(), problem, output, logsumexp);
}

template <class T>
void backward(Stream& stream, const AttentionShape& shape, const Problem& problem, const Saved& saved, float* dqkv) {
  launch<T>(keys_backward_kernel<T>, stream, shape, BackwardTiles<T>::bytes(), problem, saved, dqkv);
  launch<T>(queries_backward_kernel<T>, stream, shape, BackwardTiles<T>::bytes(), problem, saved, dqkv);
}

void check_width(int64_t width) {
  if (width > kMostGpuHeadWidth)
    user_error("attention: a head is {} wide, on a CUDA device {} at most; set more heads, or device: CPU", width,
               kMostGpuHeadWidth);
}

// Calls body(tiles for heads so wide). Tiles are chosen to fit into the 96 KiB of shared memory that a block has on
// Volta. Turing's 64 hold the smallest of them only: none of the backward pass.
template <class Body>
void with_forward_tiles(int64_t width, const Body& body) {
  check_width(width);
  if (width > 128) return body(Tiles<256, 32>());
  if (width > 64) return body(Tiles<128, 64>());
  body(Tiles<64, 64>());
}
template <class Body>
void with_backward_tiles(int64_t width, const Body& body) {
  check_width(width);
  if (width > 128) return body(Tiles<256, 16>());
  if (width > 64) return body(Tiles<128, 32>());
  body(Tiles<64, 64>());
}

}  // namespace

void check_attention_fits(Device gpu, int64_t head_width, bool trains) {
  with_forward_tiles(head_width, [&]<class T>(T) { require_shared(gpu, forward_bytes<T>()); });
  if (trains) with_backward_tiles(head_width, [&]<class T>(T) { require_shared(gpu, BackwardTiles<T>::bytes()); });
}

void attention_forward(Stream& stream, const AttentionShape& shape, Matrix<const float> qkv, const Dropout& mask,
                       Matrix<float> output, Matrix<float> logsumexp) {
  if (output.empty()) return;
  const Problem problem = make_problem(shape, qkv, mask);
  with_forward_tiles(problem.width,
                     [&]<class T>(T) { forward<T>(stream, shape, problem, output.data(), logsumexp.data()); });
}

void attention_backward(Stream& stream, const AttentionShape& shape, Matrix<const float> qkv,
                        Matrix<const float> output, Matrix<const float> logsumexp, Matrix<const float> doutput,
                        const Dropout& mask, Matrix<float> dqkv) {
  if (output.empty()) return;
  const Problem problem = make_problem(shape, qkv, mask);
  check_width(problem.width);
  float* dots = scratch<float>(stream, problem.tokens * problem.heads);
  output_dots_kernel<<<static_cast<unsigned>(ceil_divide(problem.tokens * problem.heads * kWarp, kTileThreads)),
                       kTileThreads, 0, native(stream)>>>(output.data(), doutput.data(), problem.tokens, problem.heads,
                                                          problem.width, dots);
  PKM_CUDA(cudaGetLastError());
  const Saved saved = {logsumexp.data(), dots, doutput.data()};
  with_backward_tiles(problem.width, [&]<class T>(T) { backward<T>(stream, shape, problem, saved, dqkv.data()); });
}

}  // namespace pkmesh::cuda
