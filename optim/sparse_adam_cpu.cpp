// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "layers/memory/row_kernels.h"
#include "optim/sparse_adam.h"
#include "optim/squares.h"
#include "runtime/parallel.h"

namespace pkmesh::cpu {
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
  const int64_t width = gradients.d_output.size(1);
  const auto contribution = [&](int64_t c) {
    return WeightedRow<float>{gradients.d_output.data() + gradients.sources[first + c] * width,
                              gradients.weights[first + c]};
  };
  weighted_sum(gradients.offsets[u + 1] - first, width, contribution, gradient);
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

float load(float x) {
  return x;
}
float load(bf16 x) {
  return static_cast<float>(x);
}
void store(float x, uint16_t, float& out) {
  out = x;
}
void store(float x, uint16_t bits, bf16& out) {
  out = bf16::stochastic(x, bits);
}

template <class T>
void prefetch_row(const T* row, int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < width; i += kLine) __builtin_prefetch(row + i, 1);
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

// One row. kRowWise: `second` is one number, else (width).
template <bool kRowWise, class Value, class First, class Second>
void update_row(const Coefficients& c, int64_t width, const Workspace& space, Value* __restrict value,
                First* __restrict first, Second* __restrict second) {
  const float* __restrict const gradient = space.gradient.data();
  const uint16_t* __restrict const value_bits = space.value_bits.data();
  const uint16_t* __restrict const first_bits = space.first_bits.data();
  const uint16_t* __restrict const second_bits = space.second_bits.data();
  float row_rate = 0;
  if constexpr (kRowWise) {
    const auto mean = static_cast<float>(run_of_squares(gradient, width) / static_cast<double>(width));
    *second = c.beta2 * *second + c.one_minus_beta2 * mean;
    row_rate = c.rate / (std::sqrt(*second) + c.eps);
  }
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const float g = gradient[i];
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

template <bool kRowWise, class Value, class First, class Second>
void update_all(const RowUpdate& update, Matrix<Value> values, Matrix<First> firsts, Matrix<Second> seconds,
                Vector<uint32_t> steps, const RowGradients& gradients) {
  const int64_t width = values.size(1);
  const int64_t touched = gradients.rows.count();
  const bool own_steps = update.options.correction == RowAdamOptions::Correction::kOwnSteps;
  const Coefficients global = coefficients(update, update.step);
  for_touched_rows(gradients, [&](int64_t u) {
    const int32_t row = gradients.rows[u];
    if (u + 1 < touched) {
      const int32_t next = gradients.rows[u + 1];
      prefetch_row(values[next].data(), width);
      prefetch_row(firsts[next].data(), width);
      prefetch_row(seconds[next].data(), seconds.size(1));
    }
    Workspace& space = workspace(width);
    sum_contributions(gradients, u, space.gradient.data());
    for (int64_t i = 0; i < width; ++i) space.gradient[static_cast<size_t>(i)] *= update.scale;
    if constexpr (std::is_same_v<Value, bf16>)
      fill_bits(update.value_rounding, update.global_row(row), width, space, space.value_bits.data());
    if constexpr (std::is_same_v<First, bf16>)
      fill_bits(update.first_rounding, update.global_row(row), width, space, space.first_bits.data());
    if constexpr (std::is_same_v<Second, bf16>)
      fill_bits(update.second_rounding, update.global_row(row), width, space, space.second_bits.data());
    const Coefficients c = own_steps ? coefficients(update, ++steps[row]) : global;
    update_row<kRowWise>(c, width, space, values[row].data(), firsts[row].data(), seconds[row].data());
  });
}

}  // namespace

void update_rows(Stream&, const RowUpdate& update, const RowMatrix& values, const RowState& state,
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
  for_touched_rows(gradients, [&](int64_t u) {
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

}  // namespace pkmesh::cpu
