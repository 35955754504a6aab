// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "layers/memory/row_kernels.h"
#include "optim/sparse_adam.h"
#include "optim/squares.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

// A thread's workspace: a row's gradient and its random bits stay in its nearest cache.
struct Workspace {
  std::vector<float> gradient;
  std::vector<uint32_t> words;
  std::vector<uint16_t> value_bits;
  std::vector<uint16_t> first_bits;
  std::vector<uint16_t> second_bits;
};

int64_t padded(int64_t width) {
  return (width + 7) / 8 * 8;
}  // random words come by fours

Workspace& workspace(int64_t width) {
  thread_local Workspace space;
  const auto size = static_cast<size_t>(padded(width));
  if (space.gradient.size() < size) {
    space.gradient.resize(size);
    space.words.resize(size / 2);
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
  weighted_sum<false>(count, count, width, contribution, gradient);
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

// 16 random bits for each column of a row; the same for a (row, column) wherever the row lives. A random word serves
// two columns, half a row apart.
void fill_bits(const Random& random, int32_t global_row, int64_t width, Workspace& space, uint16_t* __restrict bits) {
  const int64_t half = padded(width) / 2;
  uint32_t* const words = space.words.data();
  random.fill_bits(static_cast<uint64_t>(global_row) * static_cast<uint64_t>(half), half, words);
  for (int64_t i = 0; i < half; ++i) {
    bits[i] = static_cast<uint16_t>(words[i]);
    bits[half + i] = static_cast<uint16_t>(words[i] >> 16);
  }
}

template <class T>
float load(T x) {
  return static_cast<float>(x);
}
void store(float x, uint16_t, float& out) {
  out = x;
}
template <class T>
void store(float x, uint16_t bits, T& out) {
  out = T::stochastic(x, bits);
}

struct Coefficients {
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float rate;
  float eps;
};

Coefficients coefficients(const RowUpdate& update, int64_t t) {
  const auto& options = update.options;
  const double root2 = std::sqrt(1.0 - std::pow(options.beta2, static_cast<double>(t)));
  const double correction1 = 1.0 - std::pow(options.beta1, static_cast<double>(t));
  const bool after = options.update == RowAdamOptions::Update::kAll;
  return {.one_minus_beta1 = static_cast<float>(1.0 - options.beta1),
          .beta2 = static_cast<float>(options.beta2),
          .one_minus_beta2 = static_cast<float>(1.0 - options.beta2),
          .rate = static_cast<float>(update.lr * root2 / correction1),
          .eps = static_cast<float>(after ? options.eps * root2 : options.eps)};
}

// A row with its moments. `second` is one number if the second moment is row-wise, else (width).
template <class Value, class First, class Second>
struct Row {
  Value* value;
  First* first;
  Second* second;
};

// `count` columns of a row.
template <bool kRowWise, class Value, class First, class Second>
[[gnu::always_inline]] inline void update_columns(const Coefficients& c, float row_rate, const ScaledGradient& gradient,
                                                  const Workspace& space, const Row<Value, First, Second>& row,
                                                  int64_t begin, int64_t count) {
  const float* __restrict const from = gradient.data + begin;
  const uint16_t* __restrict const value_bits = space.value_bits.data() + begin;
  const uint16_t* __restrict const first_bits = space.first_bits.data() + begin;
  const uint16_t* __restrict const second_bits = space.second_bits.data() + begin;
  Value* __restrict const value = row.value + begin;
  First* __restrict const first = row.first + begin;
  Second* __restrict const second = kRowWise ? row.second : row.second + begin;
  const float factor = gradient.factor;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float g = factor * from[i];
    const float m = load(first[i]);
    const float new_m = m + (g - m) * c.one_minus_beta1;
    store(new_m, first_bits[i], first[i]);
    if constexpr (kRowWise) {
      store(load(value[i]) - row_rate * new_m, value_bits[i], value[i]);
    } else {
      const float v = c.beta2 * load(second[i]) + c.one_minus_beta2 * g * g;
      store(v, second_bits[i], second[i]);
      store(load(value[i]) - c.rate * new_m / (std::sqrt(v) + c.eps), value_bits[i], value[i]);
    }
  }
}

template <class T>
[[gnu::always_inline]] inline void prefetch_to_write(const T* begin, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(begin + i, 1);
}

// One row, a strip at a time; the same strip of the next row is fetched meanwhile.
template <bool kRowWise, class Value, class First, class Second>
void update_row(const Coefficients& c, int64_t width, const ScaledGradient& gradient, const Workspace& space,
                const Row<Value, First, Second>& row, const Row<Value, First, Second>& next) {
  constexpr int64_t kStrip = 64;
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

template <bool kRowWise, class Value, class First, class Second>
void update_all(const RowUpdate& update, Matrix<Value> values, Matrix<First> firsts, Matrix<Second> seconds,
                Vector<uint32_t> steps, const RowGradients& gradients) {
  const int64_t width = values.size(1);
  const int64_t last = gradients.rows.count() - 1;
  const bool own_steps = update.options.correction == RowAdamOptions::Correction::kOwnSteps;
  const Coefficients global = coefficients(update, update.step);
  const auto row_at = [&](int64_t u) -> Row<Value, First, Second> {
    const int64_t row = gradients.rows[u];
    return {values.data() + row * width, firsts.data() + row * width, seconds.data() + row * seconds.size(1)};
  };
  for_touched_rows(gradients, [&](int64_t u) {
    const int32_t row = gradients.rows[u];
    Workspace& space = workspace(width);
    ScaledGradient gradient = gradient_of(gradients, u, space.gradient.data());
    gradient.factor *= update.scale;
    if constexpr (sizeof(Value) == 2)
      fill_bits(update.value_rounding, update.global_row(row), width, space, space.value_bits.data());
    if constexpr (sizeof(First) == 2)
      fill_bits(update.first_rounding, update.global_row(row), width, space, space.first_bits.data());
    if constexpr (sizeof(Second) == 2)
      fill_bits(update.second_rounding, update.global_row(row), width, space, space.second_bits.data());
    const Coefficients c = own_steps ? coefficients(update, ++steps[row]) : global;
    update_row<kRowWise>(c, width, gradient, space, row_at(u), row_at(std::min(u + 1, last)));
  });
}

}  // namespace

void update_rows(Stream&, const RowUpdate& update, const TableRows& values, const RowState& state,
                 const RowGradients& gradients) {
  const bool row_wise = update.options.second_moment == RowAdamOptions::SecondMoment::kRowWise;
  std::visit(
      [&](const auto& value, const auto& first) {
        if (row_wise) {
          update_all<true>(update, value, first, std::get<Matrix<float>>(state.second), state.steps, gradients);
        } else {
          // Both moments are of one type.
          update_all<false>(update, value, first, std::get<std::decay_t<decltype(first)>>(state.second), state.steps,
                            gradients);
        }
      },
      values, state.first);
}

void row_squares(Stream&, const RowGradients& gradients, Vector<double> squares) {
  const int64_t width = gradients.d_output.size(1);
  // A row with one contribution, as most of a large table's are, has the norm of that output gradient times its weight.
  thread_local std::vector<double> memory;
  memory.resize(static_cast<size_t>(gradients.d_output.size(0)));
  double* const of_source = memory.data();
  parallel_for(0, gradients.d_output.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) of_source[s] = run_of_squares(gradients.d_output[s].data(), width);
  });
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
