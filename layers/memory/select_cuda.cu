// SPDX-License-Identifier: Apache-2.0
// Forward: cuBLAS scores a block of tokens against all sub-keys, small enough to stay in the cache; then a warp per
// (token, head) does the rest: the best k of both halves, the best k of their pairs, the softmax.
//
// The k best of n come without sorting n. Scores become unsigned integers of the same order. The largest t that k of
// them reach is built bit by bit, from the highest; as soon as exactly k reach it, these are the k best, and a few
// dozen compares put them in order. Otherwise t is the k-th score itself, and the first of those equal to it are taken.
//
// Backward: the gradients of a head's k scores are summed per sub-key, as on the CPU. The gradient of the queries reads
// these short lists. That of the keys is a sum of queries by sub-key, and goes the way of the row gradients: a stable
// sort, so by token, and segmented sums.
#include "layers/memory/row_sums_cuda.h"
#include "layers/memory/select.h"
#include "runtime/cuda_blas.h"
#include "runtime/cuda_scratch.h"

namespace pkmesh::cuda {
namespace {

constexpr int kMostWarps = 4;               // of a block
constexpr int64_t kSharedBytes = 48 << 10;  // that every device lends without being asked
constexpr unsigned kAllLanes = 0xFFFFFFFFU;

// --- the order of scores: that of score_order() in top_k.h, as unsigned integers ---

__device__ uint32_t ordered(float score) {
  const float value = score + 0.0F;  // -0 becomes +0: they tie
  if (value != value) return 0xFFFFFFFFU;
  const uint32_t bits = __float_as_uint(value);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

__device__ float score_of(uint32_t ordered_score) {
  if ((ordered_score & 0x80000000U) == 0) return __uint_as_float(~ordered_score);
  return __uint_as_float(ordered_score & 0x7FFFFFFFU);
}

// Sorts by score, then by lower index.
__device__ uint64_t rank_key(uint32_t ordered_score, int32_t index) {
  return (static_cast<uint64_t>(ordered_score) << 32) | (0xFFFFFFFFU - static_cast<uint32_t>(index));
}
__device__ float key_score(uint64_t key) {
  return score_of(static_cast<uint32_t>(key >> 32));
}
__device__ int32_t key_index(uint64_t key) {
  return static_cast<int32_t>(0xFFFFFFFFU - static_cast<uint32_t>(key));
}

// --- what a warp does together; every lane calls with the same arguments ---

__device__ int lane_of_warp() {
  return static_cast<int>(threadIdx.x) % kWarp;
}

// A value that at least k of `count` >= k keys reach: either exactly k of them do, or it is the k-th largest. Lane l
// looks at keys l, l + 32, ...
template <class Key>
__device__ Key bound_of_best(const Key* keys, int count, int k) {
  Key bound = 0;
  for (int bit = static_cast<int>(sizeof(Key)) * 8 - 1; bit >= 0; --bit) {
    const Key candidate = bound | (Key{1} << bit);
    int reached = 0;
    for (int i = lane_of_warp(); i < count; i += kWarp) reached += keys[i] >= candidate ? 1 : 0;
    reached = lanes_sum(reached);
    if (reached < k) continue;
    bound = candidate;
    if (reached == k) break;
  }
  return bound;
}

// sorted[0..k) = the k keys, all different, in descending order.
__device__ void sort_descending(const uint64_t* keys, int k, uint64_t* sorted) {
  for (int i = lane_of_warp(); i < k; i += kWarp) {
    const uint64_t key = keys[i];
    int place = 0;
    for (int j = 0; j < k; ++j) place += keys[j] > key ? 1 : 0;
    sorted[place] = key;
  }
  __syncwarp();
}

// The number of lanes below this one for which `condition` holds; `total` becomes that of all lanes.
__device__ int count_below(bool condition, int& total) {
  const unsigned votes = __ballot_sync(kAllLanes, condition);
  total = __popc(votes);
  return __popc(votes & ((1U << lane_of_warp()) - 1U));
}

// best[0..k) = the k best of n scores, in order. The scores are overwritten by their ordered form: each lane reads what
// it wrote itself.
__device__ void best_of_half(float* scores, int n, int k, uint64_t* unsorted, uint64_t* best) {
  auto* const keys = reinterpret_cast<uint32_t*>(scores);
  for (int i = lane_of_warp(); i < n; i += kWarp) keys[i] = ordered(scores[i]);
  const uint32_t bound = bound_of_best(keys, n, k);
  int above = 0;
  for (int i = lane_of_warp(); i < n; i += kWarp) above += keys[i] > bound ? 1 : 0;
  int ties_left = k - lanes_sum(above);  // of those equal to the bound, the first
  int taken = 0;
  for (int begin = 0; begin < n; begin += kWarp) {
    const int i = begin + lane_of_warp();
    const uint32_t key = i < n ? keys[i] : 0;
    int ties;
    const bool ties_in = count_below(i < n && key == bound, ties) < ties_left;
    const bool in = i < n && (key > bound || (key == bound && ties_in));
    int entered;
    const int place = taken + count_below(in, entered);
    if (in) unsorted[place] = rank_key(key, i);
    taken += entered;
    ties_left -= min(ties, ties_left);
  }
  __syncwarp();
  sort_descending(unsorted, k, best);
}

// best[0..k) = the k best pairs of the sorted halves, in order, each with its slot. `pairs` holds all that can win.
__device__ void best_of_pairs(const uint64_t* first, const uint64_t* second, int n, int k, uint64_t* pairs,
                              uint64_t* unsorted, uint64_t* best) {
  int count = 0;
  for (int a = 0; a < k; ++a) {
    const int partners = k / (a + 1);
    for (int b = lane_of_warp(); b < partners; b += kWarp) {
      const float sum = key_score(first[a]) + key_score(second[b]);
      pairs[count + b] = rank_key(ordered(sum), key_index(first[a]) * n + key_index(second[b]));
    }
    count += partners;
  }
  __syncwarp();
  const uint64_t bound = bound_of_best(pairs, count, k);  // keys differ, so exactly k reach it
  int taken = 0;
  for (int begin = 0; begin < count; begin += kWarp) {
    const int i = begin + lane_of_warp();
    const bool in = i < count && pairs[i] >= bound;
    int entered;
    const int place = taken + count_below(in, entered);
    if (in) unsorted[place] = pairs[i];
    taken += entered;
  }
  __syncwarp();
  sort_descending(unsorted, k, best);
}

__device__ void write_softmax(const uint64_t* best, int k, int32_t* slots, float* weights) {
  const float largest = key_score(best[0]);
  float sum = 0;
  for (int i = lane_of_warp(); i < k; i += kWarp) sum += expf(key_score(best[i]) - largest);
  const float scale = 1.0F / lanes_sum(sum);
  for (int i = lane_of_warp(); i < k; i += kWarp) {
    slots[i] = key_index(best[i]);
    weights[i] = expf(key_score(best[i]) - largest) * scale;
  }
}

// Pairs of 0-based ranks (a, b) with (a + 1)(b + 1) <= k.
constexpr int64_t count_pairs(int64_t k) {
  int64_t count = 0;
  for (int64_t a = 0; a < k; ++a) count += k / (a + 1);
  return count;
}

// scores (units, 2, n); a unit is a (token, head), slots and weights (units, k). A warp per unit, with keys for two
// halves, the best in any order, and all pairs in its part of the shared memory.
__global__ void __launch_bounds__(kMostWarps* kWarp)
    select_kernel(float* scores, int64_t units, int n, int k, int pairs, int32_t* slots, float* weights) {
  extern __shared__ uint64_t keys[];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp;
  if (unit >= units) return;  // the whole warp
  uint64_t* const first = keys + warp * (3 * k + pairs);
  uint64_t* const second = first + k;
  uint64_t* const unsorted = second + k;
  best_of_half(scores + 2 * unit * n, n, k, unsorted, first);
  best_of_half(scores + (2 * unit + 1) * n, n, k, unsorted, second);
  best_of_pairs(first, second, n, k, unsorted + k, unsorted, first);
  write_softmax(first, k, slots + unit * k, weights + unit * k);
}

// scores (tokens, H, 2, n) of tokens from `begin` on: one product per head and half.
void score(Stream& stream, View<const float, 3> queries, View<const float, 4> keys, int64_t begin, int64_t tokens,
           float* scores) {
  const auto halves = static_cast<int>(2 * keys.size(0));
  const auto n = static_cast<int>(keys.size(2));
  const auto width = static_cast<int>(keys.size(3));
  const float one = 1;
  const float zero = 0;
  // cuBLAS counts in columns: its matrices are the transposes of ours.
  PKM_CUBLAS(cublasSgemmStridedBatched(blas(stream), CUBLAS_OP_T, CUBLAS_OP_N, n, static_cast<int>(tokens), width, &one,
                                       keys.data(), std::max(width, 1), static_cast<int64_t>(n) * width,
                                       queries.data() + begin * halves * width, std::max(halves * width, 1), width,
                                       &zero, scores, halves * n, n, halves));
}

// --- backward ---

// A warp per (token, head): the gradients of its k scores, summed per sub-key in the order of the sub-keys' first
// slots; the lists in `scratch`, and the same as records (row = which sub-key, source = which query) for the keys'
// gradient. Records that are none have row `sub_keys`, behind all others.
__global__ void __launch_bounds__(kMostWarps* kWarp, 8)
    group_kernel(const int32_t* slots, const float* weights, const float* dweights, int64_t units, int heads, int n,
                 int k, SubKeyGradient* scratch, int32_t* rows, Origin* origins) {
  extern __shared__ float shared[];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp;
  if (unit >= units) return;  // the whole warp
  float* const gradients = shared + warp * 2 * k;
  auto* const indices = reinterpret_cast<int32_t*>(gradients + k);
  const int lane = lane_of_warp();

  float mean = 0;
  for (int i = lane; i < k; i += kWarp) mean += weights[unit * k + i] * dweights[unit * k + i];
  mean = lanes_sum(mean);
  for (int i = lane; i < k; i += kWarp) gradients[i] = weights[unit * k + i] * (dweights[unit * k + i] - mean);

  for (int half = 0; half < 2; ++half) {
    __syncwarp();  // the indices of the first half are no longer read
    for (int i = lane; i < k; i += kWarp) {
      const int32_t slot = slots[unit * k + i];
      indices[i] = half == 0 ? slot / n : slot % n;
    }
    __syncwarp();
    const int64_t list = (2 * unit + half) * k;
    const int32_t first_row = static_cast<int32_t>(2 * (unit % heads) + half) * n;
    int listed = 0;
    for (int begin = 0; begin < k; begin += kWarp) {
      const int i = begin + lane;
      bool leads = i < k;
      for (int j = 0; j < i && leads; ++j) leads = indices[j] != indices[i];
      int entered;
      const int place = listed + count_below(leads, entered);
      listed += entered;
      if (!leads) continue;
      float sum = 0;
      for (int j = i; j < k; ++j)
        if (indices[j] == indices[i]) sum += gradients[j];
      scratch[list + place] = {indices[i], sum};
      rows[list + place] = first_row + indices[i];
      origins[list + place] = {sum, static_cast<int32_t>(2 * unit + half)};
    }
    for (int i = listed + lane; i < k; i += kWarp) {
      if (i == listed) scratch[list + i].index = -1;
      rows[list + i] = 2 * heads * n;
      origins[list + i] = {0.0F, 0};
    }
  }
}

// dqueries, as (units, width); a unit is a (token, head, half), and a warp.
__global__ void __launch_bounds__(kMostWarps* kWarp)
    dqueries_kernel(const SubKeyGradient* __restrict__ scratch, const float* __restrict__ keys, int64_t units,
                    int halves, int n, int k, int64_t width, bool whole, float* __restrict__ dqueries) {
  const int64_t unit = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (unit >= units) return;
  const SubKeyGradient* const list = scratch + unit * k;
  const float* const half_keys = keys + unit % halves * n * width;
  for (int64_t column = lane_of_warp() * 4; column < width; column += kWarp * 4) {
    Pack<4> sum{};
    for (int i = 0; i < k && list[i].index >= 0; ++i)
      add_scaled(list[i].gradient, load_four(half_keys + list[i].index * width, column, width, whole), sum);
    for (int j = 0; j < 4; ++j)
      if (column + j < width) dqueries[unit * width + column + j] = sum.at[j];
  }
}

// offsets[r] = the first of `count` sorted rows that is not below r.
struct FindRows {
  const int32_t* sorted_rows;
  int64_t count;
  int64_t* offsets;
  __device__ void operator()(int64_t r) const {
    offsets[r] = lower_bound(0, count, [&](int64_t i) { return sorted_rows[i] < r; });
  }
};

// A block per sub-key: dkeys (sub-keys, width) += its sum.
__global__ void __launch_bounds__(kMostWarps* kWarp) dkeys_kernel(SortedContributions sums, float* dkeys) {
  const int64_t row = blockIdx.x;
  if (sums.offsets[row] == sums.offsets[row + 1]) return;
  for (int64_t column = static_cast<int64_t>(threadIdx.x) * 4; column < sums.width; column += blockDim.x * 4) {
    const Pack<4> sum = sum_row(sums, row, column);
    for (int j = 0; j < 4; ++j)
      if (column + j < sums.width) dkeys[row * sums.width + column + j] += sum.at[j];
  }
}

// Shared memory that a warp needs, forwards and backwards.
constexpr int64_t forward_bytes(int64_t k) {
  return (3 * k + count_pairs(k)) * static_cast<int64_t>(sizeof(uint64_t));
}
constexpr int64_t backward_bytes(int64_t k) {
  return 2 * k * static_cast<int64_t>(sizeof(float));
}
static_assert(std::max(forward_bytes(kMostGpuNeighbours), backward_bytes(kMostGpuNeighbours)) <= kSharedBytes);

void check_neighbours(int64_t k) {
  if (k > kMostGpuNeighbours)
    user_error("{} neighbours are more than the CUDA kernel's shared memory holds; use {} at most", k,
               kMostGpuNeighbours);
}

// Warps of a block whose shared memory holds `bytes` for each.
int warps_for(int64_t bytes) {
  return static_cast<int>(std::min<int64_t>(kSharedBytes / bytes, kMostWarps));
}

}  // namespace

void select_forward(Stream& stream, View<const float, 3> queries, View<const float, 4> keys, Matrix<int32_t> slots,
                    Matrix<float> weights) {
  const int64_t tokens = queries.size(0);
  const int64_t heads = queries.size(1);
  const int64_t n = keys.size(2);
  const int64_t k = slots.size(1) / heads;
  const int64_t pairs = count_pairs(k);
  if (tokens == 0) return;
  const int64_t scores_per_token = heads * 2 * n;
  const int64_t block =
      std::clamp<int64_t>(kGpuScoreBytes / (scores_per_token * static_cast<int64_t>(sizeof(float))), 1, tokens);
  check_neighbours(k);
  const int64_t shared = forward_bytes(k);
  const int warps = warps_for(shared);
  PKM_CHECK(std::max(scores_per_token, heads * 2 * keys.size(3)) < int64_t{1} << 31,
            "select: {} heads of {} sub-keys of width {}: more than cuBLAS counts", heads, n, keys.size(3));
  float* const scores = scratch<float>(stream, block * scores_per_token);
  for (int64_t begin = 0; begin < tokens; begin += block) {
    const int64_t count = std::min(block, tokens - begin);
    score(stream, queries, keys, begin, count, scores);
    const int64_t units = count * heads;
    select_kernel<<<static_cast<unsigned>(ceil_divide(units, warps)), warps * kWarp,
                    static_cast<size_t>(warps * shared), native(stream)>>>(scores, units, static_cast<int>(n),
                                                                           static_cast<int>(k), static_cast<int>(pairs),
                                                                           &slots(begin, 0), &weights(begin, 0));
    PKM_CUDA(cudaGetLastError());
  }
}

void select_backward(Stream& stream, View<const float, 3> queries, View<const float, 4> keys,
                     Matrix<const int32_t> slots, Matrix<const float> weights, Matrix<const float> dweights,
                     View<SubKeyGradient, 4> scratch, View<float, 3> dqueries, View<float, 4> dkeys) {
  const int64_t heads = queries.size(1);
  const int64_t n = keys.size(2);
  const int64_t width = keys.size(3);
  const int64_t k = scratch.size(3);
  const int64_t units = queries.size(0) * heads;
  const int64_t sub_keys = heads * 2 * n;
  const int64_t records = scratch.count();
  if (units == 0 || width == 0) return;
  check_neighbours(k);
  PKM_CHECK(records < int64_t{1} << 31 && sub_keys < int64_t{1} << 31, "select: {} gradients of {} sub-keys", records,
            sub_keys);
  static_assert(kGpuBytesPerGradient == 2 * (sizeof(int32_t) + sizeof(Origin)) + sizeof(float) + sizeof(int32_t));
  ScratchPlan plan;
  const auto rows = plan.add<int32_t>(records);
  const auto spare_rows = plan.add<int32_t>(records);
  const auto origins = plan.add<Origin>(records);
  const auto spare_origins = plan.add<Origin>(records);
  const auto offsets = plan.add<int64_t>(sub_keys + 1);
  const auto record_weights = plan.add<float>(records);
  const auto record_sources = plan.add<int32_t>(records);
  const auto chunks = plan.add<float>(chunk_floats(records, width));
  const auto temporary = plan.add<std::byte>(sort_bytes(records));
  std::byte* const memory = plan.take(stream);
  const RecordBuffers buffers = {{rows.in(memory), spare_rows.in(memory)},
                                 {origins.in(memory), spare_origins.in(memory)}};

  const int64_t shared = backward_bytes(k);
  const int warps = warps_for(shared);
  group_kernel<<<static_cast<unsigned>(ceil_divide(units, warps)), warps * kWarp, static_cast<size_t>(warps * shared),
                 native(stream)>>>(slots.data(), weights.data(), dweights.data(), units, static_cast<int>(heads),
                                   static_cast<int>(n), static_cast<int>(k), scratch.data(), buffers.rows[0],
                                   buffers.origins[0]);
  PKM_CUDA(cudaGetLastError());
  dqueries_kernel<<<static_cast<unsigned>(ceil_divide(2 * units, kMostWarps)), kMostWarps * kWarp, 0, native(stream)>>>(
      scratch.data(), keys.data(), 2 * units, static_cast<int>(2 * heads), static_cast<int>(n), static_cast<int>(k),
      width, rows_aligned(keys.data(), width, 16), dqueries.data());
  PKM_CUDA(cudaGetLastError());

  const int sorted = sort_records(stream, buffers, records, sub_keys + 1, temporary.in(memory), temporary.count);
  for_each(stream, records, Unpack{buffers.origins[sorted], record_weights.in(memory), record_sources.in(memory)});
  for_each(stream, sub_keys + 1, FindRows{buffers.rows[sorted], records, offsets.in(memory)});
  const SortedContributions sums = {.offsets = offsets.in(memory),
                                    .weights = record_weights.in(memory),
                                    .sources = record_sources.in(memory),
                                    .vectors = queries.data(),
                                    .width = width,
                                    .whole = rows_aligned(queries.data(), width, 16),
                                    .chunks = chunks.in(memory)};
  sum_chunks(stream, sums, sub_keys, records, chunks.in(memory));
  dkeys_kernel<<<static_cast<unsigned>(sub_keys), threads_for(ceil_divide(width, 4), kMostWarps * kWarp), 0,
                 native(stream)>>>(sums, dkeys.data());
  PKM_CUDA(cudaGetLastError());
}

}  // namespace pkmesh::cuda
