// SPDX-License-Identifier: Apache-2.0
// A block takes rows that were read, one after the other (how many there are, the device alone knows): it sums the
// row's gradient into shared memory (hot rows' chunks were summed by other blocks before) and updates value and moments
// at once. Rows that were not read are not touched.
//
// Random bits are the CPU's: word i of a row's sequence serves columns i and i + half a row, so a thread takes four
// columns of either half and needs four words for each tensor that is rounded.
#include <cub/device/device_scan.cuh>

#include "layers/memory/row_sums_cuda.h"
#include "layers/sums_cuda.h"
#include "optim/row_coefficients.h"
#include "runtime/cuda_scratch.h"

namespace pkmesh::cuda {
namespace {

static_assert(kMostGpuRowWidth * sizeof(float) <= 48 << 10);

constexpr int kThreads = 128;
constexpr int64_t kMostBlocks = 16384;

int64_t half_of(int64_t width) {
  return (width + 7) / 8 * 4;
}

struct Update {
  RowUpdate run;
  RowCoefficients global;
  const int64_t* touched;
  const int32_t* rows;
  uint32_t* steps;  // null unless rows count their own
  int64_t half;     // columns; a multiple of 4
  bool whole;       // rows of values and moments are aligned to four elements
  SortedContributions sums;
};

// Four columns of one half of a row, the bits for their rounding, and how many of them there are.
struct Place {
  int64_t column;
  int64_t width;
  bool whole;
  int half;  // which: 0 takes the low 16 bits of a word, 1 the high
};

template <class T>
__device__ std::array<uint32_t, 4> words_for(const Random& random, int32_t global_row, int64_t column) {
  if constexpr (sizeof(T) == 2) {
    const WordSequence words(random.block(static_cast<uint64_t>(global_row)));
    const auto first = static_cast<uint32_t>(column);
    return {words(first), words(first + 1), words(first + 2), words(first + 3)};
  } else {
    return {};
  }
}

__device__ void store_four(const Pack<4>& x, const std::array<uint32_t, 4>&, const Place& at, float* row) {
  if (at.whole) return store_pack(x, row + at.column);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (at.column + i < at.width) row[at.column + i] = x.at[i];
}

template <class T>
__device__ void store_four(const Pack<4>& x, const std::array<uint32_t, 4>& words, const Place& at, T* row) {
  T rounded[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) rounded[i] = T::stochastic(x.at[i], words[i] >> (16 * at.half));
  if (at.whole) {
    *reinterpret_cast<ushort4*>(row + at.column) =
        make_ushort4(rounded[0].bits, rounded[1].bits, rounded[2].bits, rounded[3].bits);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (at.column + i < at.width) row[at.column + i] = rounded[i];
}

// gradient (padded width) in shared memory = the row's, scaled. Returns this thread's share of the sum of its squares.
__device__ double sum_gradient(const SortedContributions& sums, int64_t u, float scale, float* gradient) {
  double squares = 0;
  for (int64_t column = static_cast<int64_t>(threadIdx.x) * 4; column < sums.width; column += kThreads * 4) {
    Pack<4> sum = sum_row(sums, u, column);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum.at[i] *= scale;
      squares += static_cast<double>(sum.at[i]) * sum.at[i];
    }
    store_pack(sum, gradient + column);
  }
  return squares;
}

// The row's coefficients: the run's, or by the row's own counter, which one thread moves. All threads must call it.
__device__ RowCoefficients coefficients_of(const Update& update, int32_t row) {
  if (update.steps == nullptr) return update.global;
  __shared__ RowCoefficients shared;
  if (threadIdx.x == 0) shared = row_coefficients(update.run, ++update.steps[row]);
  __syncthreads();
  return shared;
}

// The u-th row that was read. kRowWise: `second` holds one number per row, else one per element.
template <bool kRowWise, class Value, class First, class Second>
__device__ void update_row(const Update& update, int64_t u, float* gradient, Value* values, First* firsts,
                           Second* seconds) {
  const int64_t width = update.sums.width;
  const int32_t row = update.rows[u];
  const int32_t global_row = update.run.global_row(row);
  Value* const value = values + row * width;
  First* const first = firsts + row * width;
  Second* const second = seconds + row * (kRowWise ? 1 : width);

  const double my_squares = sum_gradient(update.sums, u, update.run.scale, gradient);
  const RowCoefficients c = coefficients_of(update, row);
  float row_rate = 0;
  if constexpr (kRowWise) {
    const auto mean = static_cast<float>(block_sum<kThreads>(my_squares) / static_cast<double>(width));
    const float moment = c.beta2 * *second + c.one_minus_beta2 * mean;
    row_rate = c.rate / (sqrtf(moment) + c.eps);
    __syncthreads();  // all have read it
    if (threadIdx.x == 0) *second = moment;
  }
  __syncthreads();  // the gradient is complete

  for (int64_t j = static_cast<int64_t>(threadIdx.x) * 4; j < update.half; j += kThreads * 4) {
    const auto value_words = words_for<Value>(update.run.value_rounding, global_row, j);
    const auto first_words = words_for<First>(update.run.first_rounding, global_row, j);
    std::array<uint32_t, 4> second_words{};
    if constexpr (!kRowWise) second_words = words_for<Second>(update.run.second_rounding, global_row, j);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t column = half * update.half + j;
      if (column >= width) break;
      const Place at = {column, width, update.whole, half};
      const Pack<4> g = load_pack<4>(gradient + column);
      Pack<4> x = load_four(value, column, width, update.whole);
      Pack<4> m = load_four(first, column, width, update.whole);
#pragma unroll
      for (int i = 0; i < 4; ++i) m.at[i] += (g.at[i] - m.at[i]) * c.one_minus_beta1;
      if constexpr (kRowWise) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x.at[i] -= row_rate * m.at[i];
      } else {
        Pack<4> v = load_four(second, column, width, update.whole);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          v.at[i] = c.beta2 * v.at[i] + c.one_minus_beta2 * g.at[i] * g.at[i];
          x.at[i] -= c.rate * m.at[i] / (sqrtf(v.at[i]) + c.eps);
        }
        store_four(v, second_words, at, second);
      }
      store_four(m, first_words, at, first);
      store_four(x, value_words, at, value);
    }
  }
}

template <bool kRowWise, class Value, class First, class Second>
__global__ void __launch_bounds__(kThreads)
    update_kernel(Update update, Value* values, First* firsts, Second* seconds) {
  extern __shared__ float4 shared_memory[];
  const int64_t touched = *update.touched;
  for (int64_t u = blockIdx.x; u < touched; u += gridDim.x) {
    update_row<kRowWise>(update, u, reinterpret_cast<float*>(shared_memory), values, firsts, seconds);
    __syncthreads();  // nobody reads this row's gradient any more
  }
}

// squares (most): those behind the rows that were touched are 0.
__global__ void __launch_bounds__(kThreads)
    squares_kernel(SortedContributions sums, const int64_t* touched, int64_t most, double* squares) {
  const int64_t rows = *touched;
  for (int64_t u = blockIdx.x; u < most; u += gridDim.x) {
    double mine = 0;
    for (int64_t column = static_cast<int64_t>(threadIdx.x) * 4; u < rows && column < sums.width;
         column += kThreads * 4) {
      const Pack<4> sum = sum_row(sums, u, column);
#pragma unroll
      for (int i = 0; i < 4; ++i) mine += static_cast<double>(sum.at[i]) * sum.at[i];
    }
    const double total = block_sum<kThreads>(mine);
    if (threadIdx.x == 0) squares[u] = total;
  }
}

struct Magnitude {
  __device__ double operator()(double value) const { return fabs(value); }
};

struct Store {
  double* place;
  __device__ void operator()(double sum) const { *place = sum; }
};

// Of the sum of all output gradients' squares.
struct AddBound {
  const double* weights;
  double* total;
  __device__ void operator()(double squares) const { *total += squares_bound_of(*weights, sqrt(squares)); }
};

struct NameRow {
  int32_t* rows;
  __device__ void operator()(int64_t row) const { rows[row] = static_cast<int32_t>(row); }
};

// offsets[row + 1] = the contributions of each row that has any.
struct CountContributions {
  const int64_t* touched;
  const int32_t* rows;
  const int64_t* row_offsets;
  int64_t every;
  int64_t* offsets;
  int64_t* number;
  __device__ void operator()(int64_t u) const {
    if (u < *touched) offsets[rows[u] + 1] = row_offsets[u + 1] - row_offsets[u];
    if (u == 0) *number = every;
  }
};

// With the hot rows' chunks summed.
SortedContributions make_sums(Stream& stream, const RowGradients& gradients) {
  const int64_t width = gradients.d_output.size(1);
  const int64_t contributions = gradients.weights.count();
  auto* const chunks = scratch<float>(stream, chunk_floats(contributions, width));
  const SortedContributions sums = {.offsets = gradients.offsets.data(),
                                    .weights = gradients.weights.data(),
                                    .sources = gradients.sources.data(),
                                    .vectors = gradients.d_output.data(),
                                    .width = width,
                                    .whole = rows_aligned(gradients.d_output.data(), width, 16),
                                    .chunks = chunks};
  sum_chunks(stream, sums, gradients.touched.data(), contributions, chunks);
  return sums;
}

template <class T>
bool fours_aligned(Matrix<T> rows) {
  return rows_aligned(rows.data(), rows.size(1), 4 * static_cast<int64_t>(sizeof(T)));
}

template <bool kRowWise, class Value, class First, class Second>
void launch_update(Stream& stream, Update update, Matrix<Value> values, Matrix<First> firsts, Matrix<Second> seconds,
                   int64_t touched) {
  update.whole = fours_aligned(values) && fours_aligned(firsts) && (kRowWise || fours_aligned(seconds));
  const auto shared = static_cast<size_t>(update.sums.padded_width()) * sizeof(float);
  update_kernel<kRowWise><<<static_cast<unsigned>(std::min(touched, kMostBlocks)), kThreads, shared, native(stream)>>>(
      update, values.data(), firsts.data(), seconds.data());
  PKM_CUDA(cudaGetLastError());
}

}  // namespace

void update_rows(Stream& stream, const RowUpdate& update, const TableRows& values, const RowState& state,
                 const RowGradients& gradients, Vector<float> dweights) {
  PKM_CHECK(dweights.empty(), "update_rows: dweights are for the CPU alone");
  const RowAdamOptions& options = update.options;
  const int64_t width = gradients.d_output.size(1);
  PKM_CHECK(width <= kMostGpuRowWidth, "rows of width {}: the CUDA kernel holds {} in shared memory", width,
            kMostGpuRowWidth);
  if (width == 0) return;
  const bool own_steps = options.correction == RowAdamOptions::Correction::kRowCounter;
  const Update arguments = {.run = update,
                            .global = row_coefficients(update, update.step),
                            .touched = gradients.touched.data(),
                            .rows = gradients.rows.data(),
                            .steps = own_steps ? state.steps.data() : nullptr,
                            .half = half_of(width),
                            .whole = false,  // launch_update() knows
                            .sums = make_sums(stream, gradients)};
  const int64_t touched = gradients.rows.count();
  const bool row_wise = options.second_moment == RowAdamOptions::SecondMoment::kRowWise;
  std::visit(
      [&](const auto& value, const auto& first) {
        if (row_wise) {
          launch_update<true>(stream, arguments, value, first, std::get<Matrix<float>>(state.second), touched);
        } else {  // both moments are of one type
          launch_update<false>(stream, arguments, value, first, std::get<std::decay_t<decltype(first)>>(state.second),
                               touched);
        }
      },
      values, state.first);
}

void row_squares(Stream& stream, const RowGradients& gradients, Vector<double> squares) {
  const SortedContributions sums = make_sums(stream, gradients);
  const auto blocks = static_cast<unsigned>(std::min(squares.count(), kMostBlocks));
  squares_kernel<<<blocks, kThreads, 0, native(stream)>>>(sums, gradients.touched.data(), squares.count(),
                                                          squares.data());
  PKM_CUDA(cudaGetLastError());
}

void squares_bound(Stream& stream, const RowGradients& gradients, Vector<double> total) {
  const Matrix<const float>& vectors = gradients.d_output;
  const Vector<const float>& weights = gradients.weights;
  ScratchPlan plan;
  const auto partial = plan.add<double>(partial_sums_of(std::max(vectors.count(), weights.count())));
  const auto sum_of_weights = plan.add<double>(1);
  std::byte* const memory = plan.take(stream);
  sum_terms(stream, weights.data(), weights.count(), Magnitude{}, partial.in(memory), Store{sum_of_weights.in(memory)});
  sum_terms(stream, vectors.data(), vectors.count(), Square{}, partial.in(memory),
            AddBound{sum_of_weights.in(memory), total.data()});
}

void add_in_order(Stream& stream, Vector<const double> terms, Vector<double> total) {
  add_terms(stream, terms.data(), terms.count(), Identity{}, total.data());
}

void list_every_row(Stream& stream, const RowGradients& gradients, const EveryRow& out) {
  const int64_t rows = out.rows.count();
  int64_t* const offsets = out.offsets.data();
  for_each(stream, rows, NameRow{out.rows.data()});
  clear(stream, out.offsets.flat());
  for_each(stream, std::max<int64_t>(gradients.rows.count(), 1),
           CountContributions{gradients.touched.data(), gradients.rows.data(), gradients.offsets.data(), rows, offsets,
                              out.touched.data()});
  size_t bytes = 0;
  PKM_CUDA(cub::DeviceScan::InclusiveSum(nullptr, bytes, offsets, offsets, rows + 1));
  std::byte* const temporary = scratch<std::byte>(stream, static_cast<int64_t>(bytes));
  PKM_CUDA(cub::DeviceScan::InclusiveSum(temporary, bytes, offsets, offsets, rows + 1, native(stream)));
}

}  // namespace pkmesh::cuda
