// SPDX-License-Identifier: Apache-2.0
// The optimisers' CUDA kernels against the CPU's. Output gradients and weights are small integers, so that a
// row's gradient is exact however its contributions are added.
#include <cmath>
#include <limits>

#include "layers/memory/value_table.h"
#include "optim/adam.h"
#include "optim/sparse_adam.h"
#include "tests/reference/placed.h"

namespace pkmesh {
namespace {

using reference::equal_bytes;
using reference::expect_close;
using reference::GpuTest;
using reference::Placed;
using Options = RowAdamOptions;

constexpr int64_t kRows = 61;
constexpr int64_t kSources = 9;

// Rows' numbers of contributions about a chunk's size (256): none (kAll only), one, just below, at and above it, hot.
// Rows from kRows on have one.
struct Contributions {
  explicit Contributions(bool every_row, int64_t row_count = kRows) {
    const int64_t counts[] = {1, 0, 255, 256, 257, 2, 511, 512, 1300, 0, 9, 3000, 17};
    offsets.push_back(0);
    const Random random(4, "contributions");
    for (int64_t row = 0; row < row_count; ++row) {
      const int64_t count = row < kRows ? counts[row % 13] : 1;
      if (count == 0 && !every_row) continue;
      rows.push_back(static_cast<int32_t>(row));
      for (int64_t c = 0; c < count; ++c) {
        const auto words = random.block(weights.size());
        weights.push_back(0.25F * static_cast<float>(words[0] % 5));
        sources.push_back(static_cast<int32_t>(words[1] % kSources));
      }
      offsets.push_back(std::ssize(weights));
    }
  }
  std::vector<int32_t> rows, sources;
  std::vector<int64_t> offsets;
  std::vector<float> weights;
};

std::vector<float> integers(const char* name, int64_t count) {
  const Random random(5, name);
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(static_cast<float>(static_cast<int>(random.bits(static_cast<uint64_t>(i)) % 9) - 4));
  return values;
}

template <class T>
std::vector<T> normals(const char* name, int64_t count, bool positive) {
  std::vector<float> drawn(static_cast<size_t>(count));
  Random(6, name).normals(0, count, 1.0F, drawn.data());
  std::vector<T> values;
  for (const float x : drawn) values.push_back(T(positive ? std::abs(x) : x));
  return values;
}

struct Result {
  std::vector<float> values, first, second;
  std::vector<uint32_t> steps;
  std::vector<double> squares;
  bool same_bits(const Result& other) const {
    return equal_bytes(values, other.values) && equal_bytes(first, other.first) && equal_bytes(second, other.second) &&
           steps == other.steps && equal_bytes(squares, other.squares);
  }
};

template <class T>
std::vector<float> widened(const std::vector<T>& values) {
  std::vector<float> result;
  for (const T value : values) result.push_back(static_cast<float>(value));
  return result;
}

template <class Value, class Moment>
Result update(Stream& stream, const Options& options, int64_t width, int64_t lead, int64_t row_count = kRows) {
  const Contributions list(options.update == Options::Update::kDense, row_count);
  const Placed<int32_t> rows(stream, list.rows);
  const Placed<int64_t> touched(stream, {std::ssize(list.rows)});
  const Placed<int32_t> sources(stream, list.sources);
  const Placed<int64_t> offsets(stream, list.offsets);
  const Placed<float> weights(stream, list.weights);
  const Placed<float> outputs(stream, integers("outputs", kSources * width), lead);
  const RowGradients gradients = {.rows = rows.view(),
                                  .offsets = offsets.view(),
                                  .weights = weights.view(),
                                  .sources = sources.view(),
                                  .order = {},
                                  .d_output = outputs.view(kSources, width),
                                  .touched = touched.view()};
  const bool row_wise = options.second_moment == Options::SecondMoment::kRowWise;
  const bool own_steps = options.correction == Options::Correction::kRowCounter;
  const Placed<Value> values(stream, normals<Value>("values", row_count * width, false), lead);
  const Placed<Moment> first(stream, normals<Moment>("first", row_count * width, false), lead);
  const Placed<Moment> second(stream, normals<Moment>("second", row_wise ? 0 : row_count * width, true), lead);
  const Placed<float> row_second(stream, normals<float>("second", row_wise ? row_count : 0, true));
  const Placed<uint32_t> steps(stream, std::vector<uint32_t>(static_cast<size_t>(own_steps ? row_count : 0), 7));
  const RowUpdate parameters = {.options = options,
                                .scale = 0.5F,
                                .lr = 0.03,
                                .step = 5,
                                .value_rounding = Random(1, "values", 5),
                                .first_rounding = Random(1, "first", 5),
                                .second_rounding = Random(1, "second", 5),
                                .placement = Placement(PlacementKind::kHash, 3 * row_count, 3),
                                .rank = 1};
  RowState state = {.first = first.view(row_count, width), .second = {}, .steps = steps.view()};
  if (row_wise)
    state.second = row_second.view(row_count, 1);
  else
    state.second = second.view(row_count, width);
  update_rows(stream, parameters, values.view(row_count, width), state, gradients);
  const Placed<double> squares(stream, std::ssize(list.rows));
  row_squares(stream, gradients, squares.view());
  return {widened(values.values()), widened(first.values()), row_wise ? row_second.values() : widened(second.values()),
          steps.values(), squares.values()};
}

template <class Value>
Result update(Stream& stream, const Options& options, int64_t width, int64_t lead) {
  return options.bf16_moments ? update<Value, bf16>(stream, options, width, lead)
                              : update<Value, float>(stream, options, width, lead);
}

Result update(Stream& stream, const Options& options, RowType type, int64_t width, int64_t lead) {
  if (type == RowType::kBf16) return update<bf16>(stream, options, width, lead);
  if (type == RowType::kFp16) return update<fp16>(stream, options, width, lead);
  return update<float>(stream, options, width, lead);
}

// fp32 is close. 16 bits are rounded with the same random bits on both devices, so nearly all results are equal; where
// fp32 differs in its last bit the next number may be taken. (With other bits about half of all would differ.)
void expect_same(const char* what, const std::vector<float>& actual, const std::vector<float>& expected, bool rounded) {
  constexpr double kTolerance = 1e-5;
  constexpr double kBf16Step = 0x1p-7;
  expect_close(what, actual, expected, rounded ? kBf16Step : kTolerance);
  if (!rounded) return;
  size_t different = 0;
  for (size_t i = 0; i < expected.size(); ++i) different += actual[i] != expected[i] ? 1 : 0;
  EXPECT_LE(different, expected.size() / 100) << what;
}

using SparseAdamCuda = GpuTest;

TEST_F(SparseAdamCuda, RowUpdatesEqualTheCpus) {
  for (const auto kind : {Options::Update::kSparse, Options::Update::kDense})
    for (const auto correction : {Options::Correction::kGlobalStep, Options::Correction::kRowCounter})
      for (const auto moment : {Options::SecondMoment::kFull, Options::SecondMoment::kRowWise})
        for (const bool bf16_moments : {false, true})
          for (const RowType type : {RowType::kFloat, RowType::kBf16, RowType::kFp16})
            for (const int64_t width : {1, 4, 7, 12, 33, 256, 1100})
              for (const int64_t lead : {Placed<float>::kAligned, Placed<float>::kOdd}) {
                if (kind == Options::Update::kDense && correction == Options::Correction::kRowCounter) continue;
                if (reference::quick() && (width == 12 || width > 33)) continue;
                if (lead == Placed<float>::kOdd && width % 4 != 0) continue;  // not aligned in any case
                SCOPED_TRACE(fmt::format("update {} correction {} moment {} bf16 {} values {} width {} lead {}",
                                         static_cast<int>(kind), static_cast<int>(correction), static_cast<int>(moment),
                                         bf16_moments, static_cast<int>(type), width, lead));
                const Options options = {.update = kind,
                                         .correction = correction,
                                         .second_moment = moment,
                                         .bf16_moments = bf16_moments,
                                         .eps = 1e-3};
                const auto [expected, actual] =
                    on_both([&](Stream& stream) { return update(stream, options, type, width, lead); });
                expect_same("values", actual.values, expected.values, type != RowType::kFloat);
                expect_same("first moments", actual.first, expected.first, bf16_moments);
                expect_same("second moments", actual.second, expected.second,
                            bf16_moments && moment == Options::SecondMoment::kFull);
                EXPECT_EQ(actual.steps, expected.steps);
                EXPECT_EQ(actual.squares, expected.squares);  // of integers: exact
              }
}

// More rows than the kernels have blocks (16,384), so that some blocks take several: a row's gradient must not be
// overwritten while it is in use.
TEST_F(SparseAdamCuda, RowsBeyondTheNumberOfBlocksAreUpdatedToo) {
  for (const auto moment : {Options::SecondMoment::kFull, Options::SecondMoment::kRowWise}) {
    const Options options = {.second_moment = moment, .eps = 1e-3};
    const auto [expected, actual] = on_both(
        [&](Stream& stream) { return update<float, float>(stream, options, 8, Placed<float>::kAligned, 17'000); });
    expect_same("values", actual.values, expected.values, false);
    expect_same("first moments", actual.first, expected.first, false);
    expect_same("second moments", actual.second, expected.second, false);
    EXPECT_EQ(actual.squares, expected.squares);
  }
}

TEST_F(SparseAdamCuda, ListsOfEveryRowAndSumsEqualTheCpus) {
  struct Lists {
    std::vector<int32_t> rows;
    std::vector<int64_t> offsets, touched;
    std::vector<double> total;
    bool operator==(const Lists&) const = default;
    bool same_bits(const Lists& other) const { return *this == other; }
  };
  const Contributions list(false);
  const auto [expected, actual] = on_both([&](Stream& stream) {
    const Placed<int32_t> rows(stream, list.rows);
    const Placed<int64_t> offsets(stream, list.offsets);
    const Placed<int64_t> number(stream, {std::ssize(list.rows)});
    const RowGradients gradients = {rows.view(), offsets.view(), {}, {}, {}, {}, number.view()};
    const Placed<int32_t> every_row(stream, kRows);
    const Placed<int64_t> every_offset(stream, kRows + 1);
    const Placed<int64_t> touched(stream, 1);
    const EveryRow every = {every_row.view(), every_offset.view(), touched.view()};
    PKM_DISPATCH(stream, list_every_row, gradients, every);
    std::vector<double> terms;
    for (int i = 0; i < 20'000; ++i) terms.push_back(i % 17);  // several blocks
    const Placed<double> placed_terms(stream, terms);
    const Placed<double> total(stream, std::vector<double>{3.0});
    PKM_DISPATCH(stream, add_in_order, placed_terms.view(), total.view());
    return Lists{every_row.values(), every_offset.values(), touched.values(), total.values()};
  });
  EXPECT_EQ(actual, expected);
}

TEST_F(SparseAdamCuda, BoundsOfSquaresEqualTheCpus) {
  struct Bounds {
    std::vector<double> totals;
    bool same_bits(const Bounds& other) const { return equal_bytes(totals, other.totals); }
  };
  constexpr int64_t kWidth = 1100;  // several blocks
  const Contributions list(false);
  const auto [expected, actual] = on_both([&](Stream& stream) {
    const Placed<int32_t> rows(stream, list.rows);
    const Placed<int64_t> touched(stream, {std::ssize(list.rows)});
    const Placed<int32_t> sources(stream, list.sources);
    const Placed<int64_t> offsets(stream, list.offsets);
    const Placed<float> weights(stream, list.weights);
    const Placed<double> totals(stream, std::vector<double>{3.0, 3.0, 3.0});
    for (int i = 0; i < 3; ++i) {
      std::vector<float> values = integers("outputs", kSources * kWidth);
      if (i == 1) values[4711] = std::numeric_limits<float>::quiet_NaN();
      if (i == 2) values[4711] = std::numeric_limits<float>::max();
      const Placed<float> outputs(stream, values);
      const RowGradients gradients = {
          rows.view(),   offsets.view(), weights.view(), sources.view(), {}, outputs.view(kSources, kWidth),
          touched.view()};
      PKM_DISPATCH(stream, squares_bound, gradients, totals.view().rows(i, i + 1));
    }
    return Bounds{totals.values()};
  });
  EXPECT_TRUE(std::isfinite(expected.totals[0]));
  EXPECT_NEAR(actual.totals[0], expected.totals[0], 1e-12 * expected.totals[0]);
  for (int i = 1; i < 3; ++i) {
    EXPECT_FALSE(std::isfinite(expected.totals[i]));
    EXPECT_FALSE(std::isfinite(actual.totals[i]));
  }
}

TEST_F(SparseAdamCuda, DenseUpdatesEqualTheCpus) {
  struct Moved {
    std::vector<float> values, first, second;
    bool same_bits(const Moved& other) const {
      return equal_bytes(values, other.values) && equal_bytes(first, other.first) && equal_bytes(second, other.second);
    }
  };
  for (const int64_t count : {1, 7, 4096, 70001})
    for (const std::vector<int64_t>& bounds :
         {std::vector<int64_t>{}, {0, count}, {count / 7, count / 5, count / 2, count}}) {
      SCOPED_TRACE(fmt::format("{} parameters, {} bounds", count, bounds.size()));
      const AdamOptions options = {.eps = 1e-3, .weight_decay = 0.1};
      const auto [expected, actual] = on_both([&](Stream& stream) {
        const Placed<int64_t> decayed(stream, bounds);
        const Placed<float> values(stream, normals<float>("values", count, false));
        const Placed<float> gradients(stream, normals<float>("gradients", count, false));
        const Placed<float> first(stream, normals<float>("first", count, false));
        const Placed<float> second(stream, normals<float>("second", count, true));
        adam_update(stream, adam_coefficients(options, 0.05, 3, 0.5), decayed.view(), values.view(), gradients.view(),
                    first.view(), second.view());
        return Moved{values.values(), first.values(), second.values()};
      });
      expect_close("values", actual.values, expected.values, 1e-6);
      expect_close("first moments", actual.first, expected.first, 1e-6);
      expect_close("second moments", actual.second, expected.second, 1e-6);
    }
}

}  // namespace
}  // namespace pkmesh
