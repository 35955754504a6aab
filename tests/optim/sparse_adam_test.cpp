// SPDX-License-Identifier: Apache-2.0
#include "optim/sparse_adam.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "optim/clipping.h"
#include "runtime/check.h"
#include "tests/golden/golden.h"
#include "tests/reference/adam.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

using Options = RowAdamOptions;
constexpr double kTolerance = 2e-6;

struct Contribution {
  int32_t row;
  int32_t source;
  float weight;
};

// Owns what RowGradients looks at.
struct Gradients {
  Gradients(std::vector<Contribution> contributions, std::vector<float> outputs, int64_t columns)
      : d_output(std::move(outputs)), width(columns) {
    std::stable_sort(contributions.begin(), contributions.end(),
                     [](const auto& a, const auto& b) { return a.row < b.row; });
    for (const auto& [row, source, weight] : contributions) {
      if (rows.empty() || rows.back() != row) {
        rows.push_back(row);
        offsets.push_back(std::ssize(weights));
      }
      sources.push_back(source);
      weights.push_back(weight);
    }
    offsets.push_back(std::ssize(weights));
  }
  RowGradients view() const {
    return {.rows = Vector<const int32_t>(rows.data(), std::ssize(rows)),
            .offsets = Vector<const int64_t>(offsets.data(), std::ssize(offsets)),
            .weights = Vector<const float>(weights.data(), std::ssize(weights)),
            .sources = Vector<const int32_t>(sources.data(), std::ssize(sources)),
            .order = {},
            .d_output = Matrix<const float>(d_output.data(), std::ssize(d_output) / width, width),
            .touched = {}};
  }
  // The gradient of every row in [0, count), in double.
  std::vector<double> dense(int64_t count) const {
    std::vector<double> result(static_cast<size_t>(count * width));
    for (size_t u = 0; u < rows.size(); ++u)
      for (auto c = static_cast<size_t>(offsets[u]); c < static_cast<size_t>(offsets[u + 1]); ++c)
        for (int64_t i = 0; i < width; ++i)
          result[static_cast<size_t>(rows[u] * width + i)] +=
              static_cast<double>(weights[c]) * d_output[static_cast<size_t>(sources[c] * width + i)];
    return result;
  }

  std::vector<int32_t> rows;
  std::vector<int64_t> offsets;
  std::vector<float> weights;
  std::vector<int32_t> sources;
  std::vector<float> d_output;
  int64_t width;
};

std::vector<float> random_floats(const char* name, int64_t count, float scale, int64_t step = 0) {
  std::vector<float> result(static_cast<size_t>(count));
  Random(7, name, step).normals(0, count, scale, result.data());
  return result;
}

// Skewed on purpose: row 3 gets a third of the contributions, and every fifth row none.
std::vector<Contribution> random_contributions(int64_t rows, int64_t count, int64_t sources, int64_t step) {
  const Random random(8, "contributions", step);
  std::vector<Contribution> result;
  for (int64_t c = 0; c < count; ++c) {
    const auto four = random.block(static_cast<uint64_t>(c));
    auto row = static_cast<int32_t>(four[0] % static_cast<uint32_t>(rows));
    if (four[1] % 3 == 0) row = static_cast<int32_t>(std::min<int64_t>(3, rows - 1));
    if (row % 5 == 4) continue;
    result.push_back({row, static_cast<int32_t>(four[2] % static_cast<uint32_t>(sources)), Random::to_unit(four[3])});
  }
  return result;
}

Gradients random_gradients(int64_t rows, int64_t contributions, int64_t width, int64_t step) {
  return {random_contributions(rows, contributions, 6, step), random_floats("outputs", 6 * width, 1.0F, step), width};
}

RowOptimizer whole_table(int64_t rows, int64_t width, const Options& options) {
  return RowOptimizer({}, "table", Placement(PlacementKind::kBlock, rows, 1), 0, width, options, 11);
}

std::span<const float> floats(const StateTensor& tensor) {
  return std::get<Matrix<float>>(tensor.data).flat();
}

void equals_torch(const std::string& name, Options::Update update) {
  const golden::File file(name);
  const auto start = file.floats("values");
  const int64_t rows = file.shape("values")[0];
  const int64_t width = file.shape("values")[1];
  std::vector<float> values(start.begin(), start.end());
  auto optimizer = whole_table(rows, width, {.update = update});
  Stream stream;
  const auto steps = static_cast<size_t>(file.shape("rows")[0]);
  const size_t contributions = file.integers("rows").size() / steps;
  const size_t outputs = file.floats("output.gradient").size() / steps;
  for (size_t step = 0; step < steps; ++step) {
    std::vector<Contribution> list;
    for (size_t c = step * contributions; c < (step + 1) * contributions; ++c)
      list.push_back({static_cast<int32_t>(file.integers("rows")[c]), static_cast<int32_t>(file.integers("sources")[c]),
                      file.floats("weights")[c]});
    const auto d_output = file.floats("output.gradient").subspan(step * outputs, outputs);
    const Gradients gradients(list, {d_output.begin(), d_output.end()}, width);
    optimizer.step(stream, Matrix<float>(values.data(), rows, width), gradients.view(), 1.0, file.scalar("lr"),
                   static_cast<int64_t>(step) + 1);
    golden::expect_close("values", values, file.floats("values.after").subspan(step * values.size(), values.size()),
                         kTolerance);
  }
  golden::expect_close("first moments", floats(optimizer.state()[0]), file.floats("first_moments"), kTolerance);
  golden::expect_close("second moments", floats(optimizer.state()[1]), file.floats("second_moments"), kTolerance);
}

TEST(RowAdam, TouchedRowsEqualTorchSparseAdam) {
  equals_torch("sparse_adam", Options::Update::kSparse);
}
TEST(RowAdam, AllRowsEqualTorchAdam) {
  equals_torch("dense_adam", Options::Update::kDense);
}

// Every combination of options in fp32, over odd sizes, against the formulas in double.
void agrees_with_reference(const Options& options, int64_t rows, int64_t width) {
  auto values = random_floats("values", rows * width, 1.0F);
  std::vector<reference::AdamState> states(values.size());
  for (size_t i = 0; i < values.size(); ++i) states[i].value = values[i];
  std::vector<int64_t> updates(static_cast<size_t>(rows));
  auto optimizer = whole_table(rows, width, options);
  Stream stream;
  const bool lazy = options.update == Options::Update::kSparse;
  const reference::AdamSettings settings = {
      .beta1 = options.beta1, .beta2 = options.beta2, .eps = options.eps, .eps_before_correction = lazy};
  for (int64_t step = 1; step <= 4; ++step) {
    const auto gradients = random_gradients(rows, step == 3 ? 0 : 3 * rows, width, step);
    optimizer.step(stream, Matrix<float>(values.data(), rows, width), gradients.view(), 0.5, 0.03, step);
    const auto dense = gradients.dense(rows);
    for (int64_t row = 0; row < rows; ++row) {
      if (lazy && !std::binary_search(gradients.rows.begin(), gradients.rows.end(), row)) continue;
      const auto at = static_cast<size_t>(row * width);
      double mean = 0;
      for (size_t i = 0; i < static_cast<size_t>(width); ++i) mean += 0.25 * dense[at + i] * dense[at + i];
      mean /= static_cast<double>(width);
      const int64_t own = ++updates[static_cast<size_t>(row)];
      const int64_t t = options.correction == Options::Correction::kRowCounter ? own : step;
      for (size_t i = at; i < at + static_cast<size_t>(width); ++i) {
        const double g = 0.5 * dense[i];
        reference::adam(states[i], settings, 0.03, t, g,
                        options.second_moment == Options::SecondMoment::kRowWise ? mean : g * g);
      }
    }
  }
  std::vector<float> expected;
  for (const auto& state : states) expected.push_back(static_cast<float>(state.value));
  golden::expect_close("values", values, expected, 1e-5);
}

TEST(RowAdam, AgreesWithTheReferenceForEveryOptionOverOddSizes) {
  for (const auto update : {Options::Update::kSparse, Options::Update::kDense}) {
    for (const auto correction : {Options::Correction::kGlobalStep, Options::Correction::kRowCounter}) {
      if (update == Options::Update::kDense && correction == Options::Correction::kRowCounter) continue;
      for (const auto second : {Options::SecondMoment::kFull, Options::SecondMoment::kRowWise}) {
        for (const auto& [rows, width] : {std::pair{1, 1}, {2, 3}, {13, 8}, {200, 33}}) {
          SCOPED_TRACE(fmt::format("{} {} {} {}x{}", static_cast<int>(update), static_cast<int>(correction),
                                   static_cast<int>(second), rows, width));
          agrees_with_reference({.update = update, .correction = correction, .second_moment = second, .eps = 1e-3},
                                rows, width);
        }
      }
    }
  }
}

TEST(RowAdam, UntouchedRowsKeepEveryBitAndNothingTouchedIsNoChangeAtAll) {
  const int64_t rows = 50;
  const int64_t width = 7;
  auto values = random_floats("values", rows * width, 1.0F);
  const auto before = values;
  auto optimizer = whole_table(rows, width, {.correction = Options::Correction::kRowCounter});
  Stream stream;
  optimizer.step(stream, Matrix<float>(values.data(), rows, width), Gradients({}, {}, width).view(), 1, 0.1, 1);
  EXPECT_EQ(values, before);
  const Gradients gradients({{0, 0, 1.0F}, {17, 0, 1.0F}, {49, 0, -1.0F}}, std::vector<float>(7, 1.0F), width);
  optimizer.step(stream, Matrix<float>(values.data(), rows, width), gradients.view(), 1, 0.1, 2);
  const auto state = optimizer.state();
  for (int64_t row = 0; row < rows; ++row) {
    const bool touched = row == 0 || row == 17 || row == 49;
    for (int64_t i = 0; i < width; ++i) {
      const auto at = static_cast<size_t>(row * width + i);
      EXPECT_EQ(values[at] != before[at], touched) << row;
      EXPECT_EQ(floats(state[0])[at] != 0, touched) << row;
      EXPECT_EQ(floats(state[1])[at] != 0, touched) << row;
    }
    EXPECT_EQ(std::get<Matrix<uint32_t>>(state[2].data)(row, 0), touched ? 1U : 0U);
  }
}

TEST(RowAdam, WithExactNumbersTheUpdateIsExact) {
  // beta 0.5 and 0.75 at t = 1, g = 4: m = 2, v = 4, rate = lr * 0.5 / 0.5, so value - lr * 2 / 2.
  std::vector<float> values = {1.0F, 10.0F};
  auto optimizer = whole_table(2, 1, {.beta1 = 0.5, .beta2 = 0.75, .eps = 0});
  Stream stream;
  const Gradients gradients({{1, 0, 0.25F}, {1, 1, 0.5F}, {1, 0, 0.25F}}, {2.0F, 6.0F}, 1);
  optimizer.step(stream, Matrix<float>(values.data(), 2, 1), gradients.view(), 1.0, 0.5, 1);
  EXPECT_EQ(values, (std::vector<float>{1.0F, 9.5F}));
}

// All bits of a table and its state after a few steps, by global row, with the table spread over `ranks` shards.
template <class Value>
std::map<int32_t, std::string> bits_after(PlacementKind kind, int ranks, const Options& options) {
  const int64_t rows = 61;
  const int64_t width = 19;
  const Placement placement(kind, rows, ranks);
  const auto start = random_floats("values", rows * width, 0.1F);
  std::map<int32_t, std::string> result;
  Stream stream;
  for (int rank = 0; rank < ranks; ++rank) {
    const int64_t local_rows = placement.local_rows(rank);
    std::vector<Value> memory(static_cast<size_t>(local_rows * width));
    const Matrix<Value> values(memory.data(), local_rows, width);
    for (int32_t row = 0; row < local_rows; ++row)
      for (int64_t i = 0; i < width; ++i)
        values(row, i) = Value(start[static_cast<size_t>(placement.global(rank, row) * width + i)]);
    RowOptimizer optimizer({}, "table", placement, rank, width, options, 11);
    for (int64_t step = 1; step <= 3; ++step) {
      std::vector<Contribution> mine;
      for (auto contribution : random_contributions(rows, 900, 6, step)) {
        const RowAddress address = placement.locate(contribution.row);
        if (address.owner != rank) continue;
        contribution.row = address.local;
        mine.push_back(contribution);
      }
      const Gradients gradients(mine, random_floats("outputs", 6 * width, 1.0F, step), width);
      optimizer.step(stream, values, gradients.view(), 0.5, 0.01, step);
    }
    const auto append = [&](const auto& matrix) {
      for (int32_t row = 0; row < local_rows; ++row)
        result[placement.global(rank, row)].append(reinterpret_cast<const char*>(matrix[row].data()),
                                                   static_cast<size_t>(matrix[row].count()) * sizeof(*matrix.data()));
    };
    append(values);
    for (const auto& tensor : optimizer.state()) std::visit(append, tensor.data);
  }
  return result;
}

std::vector<Options> storages() {
  return {{},
          {.correction = Options::Correction::kRowCounter, .second_moment = Options::SecondMoment::kRowWise},
          {.bf16_moments = true},
          {.second_moment = Options::SecondMoment::kRowWise, .bf16_moments = true},
          {.update = Options::Update::kDense, .bf16_moments = true}};
}

TEST(RowAdam, DependsNeitherOnRanksNorOnPlacementNorOnThreads) {
  for (const Options& options : storages()) {
    for (const auto& bits : {bits_after<float>, bits_after<bf16>, bits_after<fp16>}) {
      const reference::ThreadScope single(1);
      const auto expected = bits(PlacementKind::kBlock, 1, options);
      const reference::ThreadScope several(3);
      EXPECT_EQ(bits(PlacementKind::kBlock, 1, options), expected);
      for (const auto kind : {PlacementKind::kBlock, PlacementKind::kCyclic, PlacementKind::kHash})
        EXPECT_EQ(bits(kind, 3, options), expected);
    }
  }
}

// Each update moves a value by 1/16 of the distance between neighbours: to nearest, it would never move.
template <class Value>
void expect_unbiased(double between_neighbours) {
  const int64_t rows = 64;
  const int64_t width = 40;
  const double move = between_neighbours / 16;
  std::vector<Value> values(static_cast<size_t>(rows * width), Value(1.0F));
  const Options options = {.second_moment = Options::SecondMoment::kRowWise, .beta1 = 0, .eps = 0};
  auto optimizer = whole_table(rows, width, options);
  std::vector<Contribution> all;
  for (int32_t row = 0; row < rows; ++row) all.push_back({row, 0, 1.0F});
  const Gradients gradients(all, std::vector<float>(static_cast<size_t>(width), -1.0F), width);
  Stream stream;
  for (int64_t step = 1; step <= 64; ++step)
    optimizer.step(stream, Matrix<Value>(values.data(), rows, width), gradients.view(), 1, move, step);
  double sum = 0;
  for (const Value value : values) sum += static_cast<float>(value) - 1.0;
  const double mean = sum / static_cast<double>(values.size());
  EXPECT_NEAR(mean, 64 * move, 64 * move * 0.05);  // four standard deviations are 4 %
}

// dweights are those of the rows before they move, to the bit; and the rows move as without.
template <class T>
void updates_in_backward(int64_t width) {
  constexpr int64_t kRows = 40;
  const Gradients gradients = random_gradients(kRows, 150, width, 1);
  const std::vector<float> start = random_floats("values", kRows * width, 1.0F);
  std::vector<T> values(start.begin(), start.end());
  const std::vector<T> before = values;
  std::vector<T> expected = values;
  Stream stream;
  auto alone = whole_table(kRows, width, {});
  alone.step(stream, Matrix<T>(expected.data(), kRows, width), gradients.view(), 0.5, 1e-2, 1);

  std::vector<float> dweights(gradients.weights.size(), NAN);
  auto optimizer = whole_table(kRows, width, {});
  optimizer.step(stream, Matrix<T>(values.data(), kRows, width), gradients.view(), 0.5, 1e-2, 1,
                 Vector<float>(dweights.data(), std::ssize(dweights)));
  const auto bytes = values.size() * sizeof(T);
  EXPECT_EQ(std::memcmp(values.data(), expected.data(), bytes), 0);
  EXPECT_NE(std::memcmp(values.data(), before.data(), bytes), 0);
  for (const size_t moments : {0, 1})
    EXPECT_TRUE(std::ranges::equal(floats(optimizer.state()[moments]), floats(alone.state()[moments])));

  // One pair for each contribution, in the order of rows.
  std::vector<Selection> selections;
  std::vector<int32_t> pair_offsets = {0};
  std::vector<float> pairs;
  for (size_t u = 0; u < gradients.rows.size(); ++u)
    for (auto c = static_cast<size_t>(gradients.offsets[u]); c < static_cast<size_t>(gradients.offsets[u + 1]); ++c) {
      selections.push_back({gradients.rows[u], 1.0F});
      pair_offsets.push_back(static_cast<int32_t>(selections.size()));
      const auto source = gradients.d_output.begin() + gradients.sources[c] * width;
      pairs.insert(pairs.end(), source, source + width);
    }
  std::vector<T> table = before;
  std::vector<float> expected_dweights(dweights.size(), NAN);
  const int64_t count = std::ssize(dweights);
  weight_gradients(stream, Matrix<T>(table.data(), kRows, width), Vector<const Selection>(selections.data(), count),
                   Vector<const int32_t>(pair_offsets.data(), count + 1),
                   Matrix<const float>(pairs.data(), count, width), Vector<float>(expected_dweights.data(), count));
  EXPECT_EQ(dweights, expected_dweights) << "width " << width;
}

TEST(RowAdam, GivesTheWeightGradientsOfRowsBeforeTheyMove) {
  for (const int64_t width : {1, 16, 77, 200}) {
    updates_in_backward<float>(width);
    updates_in_backward<bf16>(width);
    updates_in_backward<fp16>(width);
  }
}

TEST(RowAdam, RoundsSixteenBitValuesWithoutBias) {
  expect_unbiased<bf16>(0x1p-7);
  expect_unbiased<fp16>(0x1p-10);
}

TEST(RowAdam, Bf16StateFollowsTheFp32OneClosely) {
  const int64_t rows = 20;
  const int64_t width = 33;
  auto exact = random_floats("values", rows * width, 1.0F);
  std::vector<bf16> rounded;
  for (const float x : exact) rounded.emplace_back(x);
  auto wide = whole_table(rows, width, {});
  auto narrow = whole_table(rows, width, {.bf16_moments = true});
  Stream stream;
  for (int64_t step = 1; step <= 20; ++step) {
    const auto gradients = random_gradients(rows, 60, width, step);
    wide.step(stream, Matrix<float>(exact.data(), rows, width), gradients.view(), 1, 0.01, step);
    narrow.step(stream, Matrix<bf16>(rounded.data(), rows, width), gradients.view(), 1, 0.01, step);
  }
  std::vector<float> result;
  for (const bf16 x : rounded) result.push_back(static_cast<float>(x));
  golden::expect_close("values", result, exact, 0.03);
}

TEST(RowAdam, GradientSquaresAreThoseOfTheDenseGradient) {
  Stream stream;
  for (const auto& [rows, width] : {std::pair{1, 1}, {13, 7}, {300, 33}}) {
    const auto gradients = random_gradients(rows, 5 * rows, width, 1);
    double expected = 0;
    for (const double g : gradients.dense(rows)) expected += g * g;
    auto optimizer = whole_table(rows, width, {});
    const reference::ThreadScope single(1);
    const auto squares = [&](const RowGradients& of) {
      double total = 0;
      optimizer.add_squares(stream, of, Vector<double>(&total, 1));
      return total;
    };
    const double one = squares(gradients.view());
    const reference::ThreadScope several(3);
    EXPECT_EQ(squares(gradients.view()), one);
    EXPECT_NEAR(one, expected, 1e-5 * expected);
    EXPECT_EQ(squares(Gradients({}, {}, width).view()), 0.0);
  }
}

TEST(RowAdam, TheBoundOfSquaresIsFiniteIfAndOnlyIfTheGradientsAre) {
  constexpr int64_t kWidth = 19;
  Stream stream;
  auto optimizer = whole_table(23, kWidth, {});
  const auto figures = [&](const Gradients& gradients) {
    double squares = 0;
    double bound = 0;
    optimizer.add_squares(stream, gradients.view(), Vector<double>(&squares, 1));
    optimizer.add_squares_bound(stream, gradients.view(), Vector<double>(&bound, 1));
    return std::array{squares, bound};
  };
  const Gradients usual = random_gradients(23, 90, kWidth, 1);
  const auto [squares, bound] = figures(usual);
  EXPECT_TRUE(std::isfinite(bound));
  EXPECT_GE(bound, squares);
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    Gradients gradients = usual;
    gradients.d_output[gradients.sources[5] * kWidth + 7] = bad;
    EXPECT_FALSE(std::isfinite(figures(gradients)[0]));
    EXPECT_FALSE(std::isfinite(figures(gradients)[1]));
    gradients = usual;
    gradients.weights.back() = bad;
    EXPECT_FALSE(std::isfinite(figures(gradients)[1]));
  }
  Gradients overflowing = usual;  // each is finite, but not their sum
  for (float& x : overflowing.d_output) x = 2e38F;
  EXPECT_FALSE(std::isfinite(figures(overflowing)[0]));
  EXPECT_FALSE(std::isfinite(figures(overflowing)[1]));
}

TEST(RowAdam, NamesAndSizesItsState) {
  const Options options = {.correction = Options::Correction::kRowCounter,
                           .second_moment = Options::SecondMoment::kRowWise,
                           .bf16_moments = true};
  const auto state = whole_table(5, 8, options).state();
  ASSERT_EQ(state.size(), 3U);
  EXPECT_EQ(state[0].name, "m");
  EXPECT_EQ(state[1].name, "v");
  EXPECT_EQ(state[2].name, "steps");
  EXPECT_EQ(std::get<Matrix<bf16>>(state[0].data).shape(), (std::array<int64_t, 2>{5, 8}));
  EXPECT_EQ(std::get<Matrix<float>>(state[1].data).shape(), (std::array<int64_t, 2>{5, 1}));
  EXPECT_EQ(RowOptimizer::bytes_per_row(options, 8), 2 * 8 + 4 + 4);
  EXPECT_EQ(RowOptimizer::bytes_per_row({}, 8), 4 * 8 + 4 * 8);
  EXPECT_EQ(RowOptimizer::bytes_per_row({.bf16_moments = true}, 8), 2 * 8 + 2 * 8);
  EXPECT_NO_THROW(RowOptimizer({}, "table", Placement(PlacementKind::kBlock, 2, 4), 3, 8, options, 1).state());
}

TEST(RowAdam, RefusesWhatDoesNotFit) {
  Stream stream;
  std::vector<float> values(12);
  auto optimizer = whole_table(4, 3, {});
  const Gradients gradients({{1, 0, 1.0F}}, {1.0F, 1.0F}, 2);
  EXPECT_THROW(optimizer.step(stream, Matrix<float>(values.data(), 4, 3), gradients.view(), 1, 0.1, 1), InternalError);
  EXPECT_THROW(optimizer.step(stream, Matrix<float>(values.data(), 3, 4), gradients.view(), 1, 0.1, 1), InternalError);
  EXPECT_THROW(whole_table(4, 3, {.update = Options::Update::kDense, .correction = Options::Correction::kRowCounter}),
               InternalError);
}

}  // namespace
}  // namespace pkmesh
