// SPDX-License-Identifier: Apache-2.0
#include "optim/adam.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/random.h"
#include "tests/golden/golden.h"
#include "tests/reference/adam.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

constexpr double kTolerance = 2e-6;

std::vector<float> random_floats(const char* name, int64_t count, float scale) {
  std::vector<float> result(static_cast<size_t>(count));
  Random(5, name).normals(0, count, scale, result.data());
  return result;
}

void equals_torch(const std::string& name, bool decays) {
  const golden::File file(name);
  const auto start = file.floats("values");
  const auto count = std::ssize(start);
  std::vector<float> values(start.begin(), start.end());
  AdamOptions options{.beta1 = 0.9, .beta2 = 0.98, .eps = 1e-8, .weight_decay = file.scalar("weight_decay")};
  Adam adam({}, {{0, count}}, options, decays ? std::vector<Share>{{0, count}} : std::vector<Share>{});
  Stream stream;
  for (int64_t step = 1; step <= file.shape("gradients")[0]; ++step) {
    const auto at = static_cast<size_t>((step - 1) * count);
    const auto gradients = file.floats("gradients").subspan(at, values.size());
    adam.step(stream, values, gradients, 1.0, file.floats("learning_rates")[static_cast<size_t>(step - 1)], step);
    golden::expect_close("values", values, file.floats("values.after").subspan(at, values.size()), kTolerance);
  }
  golden::expect_close("first moments", adam.first_moments(), file.floats("first_moments"), kTolerance);
  golden::expect_close("second moments", adam.second_moments(), file.floats("second_moments"), kTolerance);
}

TEST(Adam, EqualsTorchAdam) {
  equals_torch("adam", false);
}
TEST(Adam, EqualsTorchAdamW) {
  equals_torch("adamw", true);
}

TEST(Adam, AgreesWithTheReferenceOverOddSizesScalesAndDecayedRanges) {
  Stream stream;
  for (const int64_t count : {0, 1, 7, 16, 33, 100001}) {
    SCOPED_TRACE(count);
    auto values = random_floats("values", count, 1.0F);
    const AdamOptions options{.beta1 = 0.8, .beta2 = 0.95, .eps = 1e-3, .weight_decay = 0.1};
    const std::vector<Share> decayed = {{count / 7, count / 5}, {count / 5, count / 3}, {count / 2, count}};
    Adam adam({}, {{0, count}}, options, decayed);
    std::vector<reference::AdamState> states(values.size());
    for (size_t i = 0; i < values.size(); ++i) states[i].value = values[i];
    for (int64_t step = 1; step <= 3; ++step) {
      const auto gradients = random_floats("gradients", count, static_cast<float>(step));
      adam.step(stream, values, gradients, 0.25, 0.05, step);
      for (int64_t i = 0; i < count; ++i) {
        const bool decays = (i >= count / 7 && i < count / 3) || i >= count / 2;
        const double g = 0.25 * static_cast<double>(gradients[static_cast<size_t>(i)]);
        reference::adam(states[static_cast<size_t>(i)], {0.8, 0.95, 1e-3, decays ? 0.1 : 0.0}, 0.05, step, g, g * g);
      }
    }
    std::vector<float> expected;
    for (const auto& state : states) expected.push_back(static_cast<float>(state.value));
    golden::expect_close("values", values, expected, kTolerance);
  }
}

TEST(Adam, TouchesNothingOutsideItsSpanAndDoesNotDependOnThreads) {
  const int64_t count = 70001;
  const auto gradients = random_floats("gradients", count, 1.0F);
  std::vector<std::vector<float>> results;
  for (const int thread_count : {1, 3}) {
    const reference::ThreadScope scope(thread_count);
    auto values = random_floats("values", count + 2, 1.0F);
    const float first = values.front();
    const float last = values.back();
    Stream stream;
    Adam adam({}, {{0, count}}, {});
    for (int64_t step = 1; step <= 2; ++step)
      adam.step(stream, std::span(values).subspan(1, static_cast<size_t>(count)), gradients, 1.0, 0.1, step);
    EXPECT_EQ(values.front(), first);
    EXPECT_EQ(values.back(), last);
    results.push_back(values);
  }
  EXPECT_EQ(results[0], results[1]);
}

TEST(Adam, RefusesWrongSizesAndStepZero) {
  Stream stream;
  std::vector<float> four(4);
  std::vector<float> five(5);
  Adam adam({}, {{0, 4}}, {});
  EXPECT_THROW(adam.step(stream, four, five, 1.0, 0.1, 1), InternalError);
  EXPECT_THROW(adam.step(stream, five, four, 1.0, 0.1, 1), InternalError);
  EXPECT_THROW(adam.step(stream, four, four, 1.0, 0.1, 0), InternalError);
  EXPECT_THROW(Adam({}, {{0, 4}}, {.weight_decay = 0.1}, {{2, 3}, {1, 2}}), InternalError);
  EXPECT_THROW(Adam({}, {{2, 4}, {0, 2}}, {}), InternalError);
}

// As all of it, in the shares alone; moments one after the other, all at once or some at a time.
TEST(Adam, MovesSharesAsItMovesTheWhole) {
  const int64_t count = 1000;
  const std::vector<Share> shares = {{3, 10}, {10, 11}, {200, 500}, {900, 1000}};
  const AdamOptions options{.weight_decay = 0.1};
  const std::vector<Share> decayed = {{0, 5}, {5, 250}, {400, 600}, {990, 1000}};
  const auto gradients = random_floats("gradients", count, 1.0F);
  const auto start = random_floats("values", count, 1.0F);
  Stream stream;
  auto whole = start;
  auto parts = start;
  auto turns = start;
  Adam all({}, {{0, count}}, options, decayed);
  Adam some({}, shares, options, decayed);
  Adam in_turns({}, shares, options, decayed);
  for (int64_t step = 1; step <= 3; ++step) {
    all.step(stream, whole, gradients, 0.5, 0.1, step);
    some.step(stream, parts, gradients, 0.5, 0.1, step);
    for (const Share numbers : {Share{2, 4}, Share{0, 2}, Share{1, 1}})
      in_turns.step(stream, turns, gradients, 0.5, 0.1, step, numbers);
  }
  auto expected = start;
  std::vector<float> moments;
  for (const Share& share : shares) {
    std::ranges::copy(share.of(std::span(whole)), share.of(std::span(expected)).begin());
    const auto first = share.of(all.first_moments());
    moments.insert(moments.end(), first.begin(), first.end());
  }
  EXPECT_EQ(parts, expected);
  EXPECT_EQ(turns, expected);
  EXPECT_TRUE(std::ranges::equal(some.first_moments(), moments));
  EXPECT_TRUE(std::ranges::equal(in_turns.first_moments(), moments));
}

}  // namespace
}  // namespace pkmesh
