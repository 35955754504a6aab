// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "layers/memory/row_kernels.h"
#include "optim/row_coefficients.h"
#include "optim/squares.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

// A thread's workspace: a row's gradient and its random bits stay in its nearest cache.
struct Workspace {
  std::vector<float> gradient;
  std::vector<uint16_t> value_bits;
  std::vector<uint16_t> first_bits;
  std::vector<uint16_t> second_bits;
};

// To whole vectors of either half.
int64_t padded(int64_t width) {
  return (width + 7) / 8 * 8;
}

Workspace& workspace(int64_t width) {
  thread_local Workspace space;
  const auto size = static_cast<size_t>(padded(width));
  if (space.gradient.size() < size) {
    space.gradient.resize(size);
    space.value_bits.resize(size);
    space.first_bits.resize(size);
    space.second_bits.resize(size);
  }
  return space;
}

// gradient (width) = the row's contributions, added in their order.
void sum_contributions(const RowGradients& gradients, int64_t u, float* gradient) {
  const int64_t first = gradients.offsets[u];
  const int64_t count = gradients.offsets[u + 1] - first;
  const int64_t width = gradients.d_output.size(1);
  const auto contribution = [&](int64_t c) {
    return WeightedRow<float>{gradients.d_output.data() + gradients.sources[first + c] * width,
                              gradients.weights[first + c]};
  };
  weighted_sum(count, 0, width, contribution, gradient);
}

// A row's gradient: factor times data (width). Of a single contribution nothing is to be summed: it is read where it
// is.
struct ScaledGradient {
  const float* data;
  float factor;
};

ScaledGradient gradient_of(const RowGradients& gradients, int64_t u, float* workspace) {
  const int64_t first = gradients.offsets[u];
  if (gradients.offsets[u + 1] - first == 1)
    return {gradients.d_output[gradients.sources[first]].data(), gradients.weights[first]};
  sum_contributions(gradients, u, workspace);
  return {workspace, 1.0F};
}

// |d_output[s]|^2 for every source, until this thread's next call.
const double* source_squares(const RowGradients& gradients) {
  thread_local std::vector<double> memory;
  memory.resize(static_cast<size_t>(gradients.d_output.size(0)));
  double* const squares = memory.data();
  parallel_for(0, gradients.d_output.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s)
      squares[s] = run_of_squares(gradients.d_output[s].data(), gradients.d_output.size(1));
  });
  return squares;
}

// Calls body(u) for every touched row, in parallel. Pieces are cut by work, not by rows: usage is skewed.
template <class Body>
void for_touched_rows(const RowGradients& gradients, const Body& body) {
  constexpr int64_t kRowWork = 4;  // the row itself costs about as much as four contributions
  const int64_t touched = gradients.rows.count();
  PKM_CHECK(gradients.offsets[touched] == gradients.weights.count(), "the last offset is {}, of {} contributions",
            gradients.offsets[touched], gradients.weights.count());
  const auto work_before = [&](int64_t u) { return gradients.offsets[u] + kRowWork * u; };
  const auto first_with = [&](int64_t work) {  // the first row with at least this much before it
    int64_t low = 0;
    int64_t high = touched;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (work_before(middle) < work) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  parallel_for(0, work_before(touched), 64 * kRowWork, [&](int64_t begin, int64_t end) {
    const int64_t last = first_with(end);
    for (int64_t u = first_with(begin); u < last; ++u) body(u);
  });
}

// 16 random bits for each column of a row; the same for a (row, column) wherever the row lives. A word of the row's
// sequence serves two columns, half a row apart.
void fill_bits(const Random& random, int32_t global_row, int64_t width, uint16_t* bits) {
  const WordSequence words(random.block(static_cast<uint64_t>(global_row)));
  const int64_t half = padded(width) / 2;
  uint16_t* __restrict const low = bits;
  uint16_t* __restrict const high = bits + half;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const uint32_t word = words(static_cast<uint32_t>(i));
    low[i] = static_cast<uint16_t>(word);
    high[i] = static_cast<uint16_t>(word >> 16);
  }
}

constexpr int64_t kStrip = 64;  // columns that are widened and narrowed at a time
using StripSpace = std::array<float, kStrip>;

// A strip as floats: where it is, or in `space`.
const float* widen(const float* strip, int64_t, StripSpace&) {
  return strip;
}
template <class T>
const float* widen(const T* strip, int64_t count, StripSpace& space) {
  for (int64_t i = 0; i < count; ++i) space[i] = static_cast<float>(strip[i]);
  return space.data();
}
// Where a strip's new numbers are to be written before narrow() stores them.
float* new_strip(float* strip, StripSpace&) {
  return strip;
}
template <class T>
float* new_strip(T*, StripSpace& space) {
  return space.data();
}
void narrow(const StripSpace&, const uint16_t*, int64_t, float*) {}
template <class T>
void narrow(const StripSpace& from, const uint16_t* __restrict bits, int64_t count, T* __restrict strip) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) strip[i] = T::stochastic(from[i], bits[i]);
}

// A row with its moments. `second` is one number if the second moment is row-wise, else (width).
template <class Value, class First, class Second>
struct Row {
  Value* value;
  First* first;
  Second* second;
};

// Columns [begin, begin + count) of a row, a strip at most.
template <bool kRowWise, class Value, class First, class Second>
[[gnu::always_inline]] inline void update_columns(const RowCoefficients& c, float row_rate,
                                                  const ScaledGradient& gradient, const Workspace& space,
                                                  const Row<Value, First, Second>& row, int64_t begin, int64_t count) {
  StripSpace value_space;
  StripSpace first_space;
  StripSpace second_space;
  const float* const from = gradient.data + begin;
  const float* const value = widen(row.value + begin, count, value_space);
  const float* const first = widen(row.first + begin, count, first_space);
  float* const new_value = new_strip(row.value + begin, value_space);
  float* const new_first = new_strip(row.first + begin, first_space);
  const float factor = gradient.factor;
  if constexpr (kRowWise) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const float m = first[i] + (factor * from[i] - first[i]) * c.one_minus_beta1;
      new_first[i] = m;
      new_value[i] = value[i] - row_rate * m;
    }
  } else {
    const float* const second = widen(row.second + begin, count, second_space);
    float* const new_second = new_strip(row.second + begin, second_space);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const float g = factor * from[i];
      const float m = first[i] + (g - first[i]) * c.one_minus_beta1;
      const float v = c.beta2 * second[i] + c.one_minus_beta2 * g * g;
      new_first[i] = m;
      new_second[i] = v;
      new_value[i] = value[i] - c.rate * m / (std::sqrt(v) + c.eps);
    }
    narrow(second_space, space.second_bits.data() + begin, count, row.second + begin);
  }
  narrow(first_space, space.first_bits.data() + begin, count, row.first + begin);
  narrow(value_space, space.value_bits.data() + begin, count, row.value + begin);
}

template <class T>
[[gnu::always_inline]] inline void prefetch_to_write(const T* begin, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(begin + i, 1);
}

// One row, a strip at a time; the same strip of the next row is fetched meanwhile.
template <bool kRowWise, class Value, class First, class Second>
void update_row(const RowCoefficients& c, int64_t width, const ScaledGradient& gradient, const Workspace& space,
                const Row<Value, First, Second>& row, const Row<Value, First, Second>& next) {
  float row_rate = 0;
  if constexpr (kRowWise) {
    const double squares = run_of_squares(gradient.data, width) * gradient.factor * gradient.factor;
    *row.second = c.beta2 * *row.second + c.one_minus_beta2 * static_cast<float>(squares / static_cast<double>(width));
    row_rate = c.rate / (std::sqrt(*row.second) + c.eps);
  }
  int64_t begin = 0;
  for (; begin + kStrip <= width; begin += kStrip) {
    prefetch_to_write(next.value + begin, kStrip);
    prefetch_to_write(next.first + begin, kStrip);
    if constexpr (!kRowWise) prefetch_to_write(next.second + begin, kStrip);
    update_columns<kRowWise>(c, row_rate, gradient, space, row, begin, kStrip);
  }
  update_columns<kRowWise>(c, row_rate, gradient, space, row, begin, width - begin);
}

// dweights of the contributions to a row that has yet to move: as weight_gradients(), bit for bit.
template <class Value>
void weight_gradients_of(const Value* row, const RowGradients& gradients, int64_t u, Vector<float> dweights) {
  const int64_t width = gradients.d_output.size(1);
  const auto source = [&](int64_t c) { return gradients.d_output.data() + gradients.sources[c] * width; };
  const int64_t end = gradients.offsets[u + 1];
  int64_t c = gradients.offsets[u];
  for (; c + 4 <= end; c += 4) {
    const float* const four[4] = {source(c), source(c + 1), source(c + 2), source(c + 3)};
    dot_rows<4>(row, four, width, dweights.data() + c);
  }
  for (; c < end; ++c) {
    const float* const one = source(c);
    dot_rows<1>(row, &one, width, dweights.data() + c);
  }
}

template <bool kRowWise, class Value, class First, class Second>
void update_all(const RowUpdate& update, Matrix<Value> values, Matrix<First> firsts, Matrix<Second> seconds,
                Vector<uint32_t> steps, const RowGradients& gradients, Vector<float> dweights) {
  const int64_t width = values.size(1);
  const int64_t last = gradients.rows.count() - 1;
  const bool own_steps = update.options.correction == RowAdamOptions::Correction::kRowCounter;
  const RowCoefficients global = row_coefficients(update, update.step);
  const auto row_at = [&](int64_t u) -> Row<Value, First, Second> {
    const int64_t row = gradients.rows[u];
    return {values.data() + row * width, firsts.data() + row * width, seconds.data() + row * seconds.size(1)};
  };
  for_touched_rows(gradients, [&](int64_t u) {
    const int32_t row = gradients.rows[u];
    Workspace& space = workspace(width);
    if (!dweights.empty()) weight_gradients_of(row_at(u).value, gradients, u, dweights);
    ScaledGradient gradient = gradient_of(gradients, u, space.gradient.data());
    gradient.factor *= update.scale;
    if constexpr (sizeof(Value) == 2)
      fill_bits(update.value_rounding, update.global_row(row), width, space.value_bits.data());
    if constexpr (sizeof(First) == 2)
      fill_bits(update.first_rounding, update.global_row(row), width, space.first_bits.data());
    if constexpr (sizeof(Second) == 2)
      fill_bits(update.second_rounding, update.global_row(row), width, space.second_bits.data());
    const RowCoefficients c = own_steps ? row_coefficients(update, ++steps[row]) : global;
    update_row<kRowWise>(c, width, gradient, space, row_at(u), row_at(std::min(u + 1, last)));
  });
}

}  // namespace

void update_rows(Stream&, const RowUpdate& update, const TableRows& values, const RowState& state,
                 const RowGradients& gradients, Vector<float> dweights) {
  const bool row_wise = update.options.second_moment == RowAdamOptions::SecondMoment::kRowWise;
  std::visit(
      [&](const auto& value, const auto& first) {
        if (row_wise) {
          update_all<true>(update, value, first, std::get<Matrix<float>>(state.second), state.steps, gradients,
                           dweights);
        } else {
          // Both moments are of one type.
          update_all<false>(update, value, first, std::get<std::decay_t<decltype(first)>>(state.second), state.steps,
                            gradients, dweights);
        }
      },
      values, state.first);
}

void row_squares(Stream&, const RowGradients& gradients, Vector<double> squares) {
  const int64_t width = gradients.d_output.size(1);
  // A row with one contribution, as most of a large table's are, has the norm of that output gradient times its weight.
  const double* const of_source = source_squares(gradients);
  for_touched_rows(gradients, [&](int64_t u) {
    const int64_t first = gradients.offsets[u];
    if (gradients.offsets[u + 1] - first == 1) {
      const double weight = gradients.weights[first];
      squares[u] = weight * weight * of_source[gradients.sources[first]];
      return;
    }
    float* const gradient = workspace(width).gradient.data();
    sum_contributions(gradients, u, gradient);
    squares[u] = run_of_squares(gradient, width);
  });
}

void squares_bound(Stream&, const RowGradients& gradients, Vector<double> total) {
  const double* const of_source = source_squares(gradients);
  const double longest = std::sqrt(std::accumulate(of_source, of_source + gradients.d_output.size(0), 0.0));
  double weights = 0;
#pragma omp simd reduction(+ : weights)
  for (int64_t c = 0; c < gradients.weights.count(); ++c) weights += std::abs(gradients.weights.data()[c]);
  total[0] += squares_bound_of(weights, longest);
}

void add_in_order(Stream&, Vector<const double> terms, Vector<double> total) {
  total[0] += std::accumulate(terms.begin(), terms.end(), 0.0);
}

void list_every_row(Stream&, const RowGradients& gradients, const EveryRow& out) {
  const int64_t rows = out.rows.count();
  std::iota(out.rows.begin(), out.rows.end(), 0);
  std::ranges::fill(out.offsets.flat(), 0);
  for (int64_t u = 0; u < gradients.rows.count(); ++u)
    out.offsets[gradients.rows[u] + 1] = gradients.offsets[u + 1] - gradients.offsets[u];
  std::partial_sum(out.offsets.begin(), out.offsets.end(), out.offsets.begin());
  out.touched[0] = rows;
}

}  // namespace pkmesh::PKM_CPU
