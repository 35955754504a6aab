// SPDX-License-Identifier: Apache-2.0
// The layer over 1 to 4 ranks against the judge, which sees all tokens at once; and against itself on one rank.
#include "layers/memory/batch_norm.h"

#include "comm/thread.h"
#include "runtime/parallel.h"
#include "tests/reference/batch_norm.h"
#include "tests/reference/tensor.h"

namespace pkmesh {
namespace {

using namespace reference;
constexpr double kTolerance = 3e-6;
constexpr double kSumTolerance = 1e-5;  // of parameter gradients: sums over tokens

struct Input {
  Numbers x, dy;  // (steps * T, F)
  Numbers weight, bias;
  int64_t steps = 1;
  bool in_place = false;
  int threads = 1;  // per rank
  size_t width() const { return weight.size(); }
  Numbers step_of(const Numbers& all, int64_t step) const {
    const auto size = std::ssize(all) / steps;
    return {all.begin() + step * size, all.begin() + (step + 1) * size};
  }
};

// Far from 0 by default: a variance from sums in single precision would feel it.
Input normal_input(int64_t tokens, int64_t width, int64_t steps = 1, double offset = 10) {
  Input input{normals("x", steps * tokens * width), normals("dy", steps * tokens * width), normals("weight", width),
              normals("bias", width), steps};
  for (double& value : input.x) value = static_cast<float>(value + offset);
  return input;
}

struct Output {
  std::vector<float> y, dx;                // as Input::x
  std::vector<float> dweight, dbias;       // summed over the ranks
  std::vector<std::vector<float>> states;  // per rank: running mean, running variance
  std::vector<int64_t> calls;              // per rank: collectives for BatchNorm
  bool operator==(const Output&) const = default;
};

// Copies a rank's tokens into tensors between sentinels, runs the steps, copies the results back.
void run_rank(Communicator& world, const Input& input, int64_t begin, int64_t end, Output& output) {
  const auto width = static_cast<int64_t>(input.width());
  const int64_t all_tokens = std::ssize(input.x) / width / input.steps;
  Parameters parameters;
  SyncBatchNorm layer(parameters, "norm", width);
  parameters.allocate({}, 1);
  EXPECT_EQ(parameters.entries()[0].name, "norm.weight");
  EXPECT_EQ(parameters.state_entries()[1].name, "norm.running_var");
  std::copy(input.weight.begin(), input.weight.end(), parameters.values().begin());
  std::copy(input.bias.begin(), input.bias.end(), parameters.values().begin() + width);
  set_threads(input.threads);  // of this rank's own thread
  Stream stream;
  Arena arena;
  StepContext context{stream, arena, world};
  for (int64_t step = 0; step < input.steps; ++step) {
    const auto first = (step * all_tokens + begin) * width;
    const auto last = (step * all_tokens + end) * width;
    Tensor<float> x(Numbers(input.x.begin() + first, input.x.begin() + last));
    Tensor<float> dy(Numbers(input.dy.begin() + first, input.dy.begin() + last));
    Tensor<float> other_y(last - first);
    Tensor<float> other_dx(last - first);
    Tensor<float>& y = input.in_place ? x : other_y;
    Tensor<float>& dx = input.in_place ? dy : other_dx;
    layer.forward(context, x.view(end - begin, width), y.view(end - begin, width));
    std::copy_n(y.data(), last - first, output.y.begin() + first);
    layer.backward(context, dy.view(end - begin, width), dx.view(end - begin, width));
    std::copy_n(dx.data(), last - first, output.dx.begin() + first);
    arena.reset();
  }
  output.calls[static_cast<size_t>(world.rank())] = world.ledger()[Purpose::kBatchNorm].calls;
  const auto states = parameters.states();
  output.states[static_cast<size_t>(world.rank())].assign(states.begin(), states.end());
  world.all_reduce(parameters.gradients(), Reduction::kSum, Purpose::kDense);
  if (world.rank() > 0) return;
  output.dweight.assign(parameters.gradients().begin(), parameters.gradients().begin() + width);
  output.dbias.assign(parameters.gradients().begin() + width, parameters.gradients().end());
}

// Rank r has tokens [cuts[r], cuts[r + 1]).
Output run(const Input& input, const std::vector<int64_t>& cuts) {
  const auto ranks = static_cast<int>(cuts.size()) - 1;
  Output output;
  output.y.resize(input.x.size());
  output.dx.resize(input.x.size());
  output.states.resize(static_cast<size_t>(ranks));
  output.calls.resize(static_cast<size_t>(ranks));
  run_ranks(ranks, [&](Communicator& world) {
    const auto rank = static_cast<size_t>(world.rank());
    run_rank(world, input, cuts[rank], cuts[rank + 1], output);
  });
  return output;
}

Numbers to_numbers(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

void expect_near(std::string_view what, const std::vector<float>& actual, const Numbers& expected, double tolerance) {
  Tensor<float> tensor(to_numbers(actual));
  reference::expect_near(what, tensor, expected, tolerance);
}

// One step against the judge: y, running statistics, and gradients by finite differences of it.
void expect_right(const Input& input, const Output& output) {
  const auto judge = [&](const Numbers& x, const Numbers& weight, const Numbers& bias) {
    return batch_norm(x, weight, bias, SyncBatchNorm::kEpsilon);
  };
  const BatchNorm expected = judge(input.x, input.weight, input.bias);
  expect_near("y", output.y, expected.y, 2e-5);  // x is known to 1e-6 of its size 10, and so is its mean
  Numbers states;
  for (const double mean : expected.mean) states.push_back(0.1 * mean);
  for (const double unbiased : expected.unbiased) states.push_back(0.9 + 0.1 * unbiased);
  for (const auto& state : output.states) {
    expect_near("running statistics", state, states, 1e-6);
    EXPECT_EQ(state, output.states[0]);  // to the bit on all ranks
  }
  for (const int64_t calls : output.calls) EXPECT_EQ(calls, 2);

  const auto expect = [&](std::string_view what, const std::vector<float>& gradient, const Numbers& at,
                          const std::function<double(const Numbers&)>& loss, double tolerance) {
    Tensor<float> tensor(to_numbers(gradient));
    expect_gradient(what, tensor, at, loss, tolerance, 80);
  };
  const auto loss = [&](const Numbers& x, const Numbers& weight, const Numbers& bias) {
    return dot(judge(x, weight, bias).y, input.dy);
  };
  expect(
      "dx", output.dx, input.x, [&](const Numbers& at) { return loss(at, input.weight, input.bias); }, 1e-5);
  expect(
      "dweight", output.dweight, input.weight, [&](const Numbers& at) { return loss(input.x, at, input.bias); },
      kSumTolerance);
  expect(
      "dbias", output.dbias, input.bias, [&](const Numbers& at) { return loss(input.x, input.weight, at); },
      kSumTolerance);
}

const std::vector<std::vector<int64_t>> kCuts = {{0, 37}, {0, 30, 37}, {0, 0, 36, 37}, {0, 5, 20, 20, 37}};

TEST(BatchNormTest, AnyRanksAreRight) {
  const Input input = normal_input(37, 11);
  for (const auto& cuts : kCuts) expect_right(input, run(input, cuts));
}

TEST(BatchNormTest, OddShapes) {
  for (const auto& [tokens, width] : {std::pair<int64_t, int64_t>{2, 1}, {3, 1}, {2, 9}, {131, 3}})
    // Two tokens may be close: about 0, so that their difference is known well.
    expect_right(normal_input(tokens, width, 1, 0), run(normal_input(tokens, width, 1, 0), {0, tokens / 2, tokens}));
}

// A thousand deviations from 0, of which sums of squares in double lose 20 bits of 53, and a float 10 of 24.
TEST(BatchNormTest, VarianceFarFromZero) {
  const Input input = normal_input(131, 3, 1, 1000);
  const BatchNorm expected = batch_norm(input.x, input.weight, input.bias, SyncBatchNorm::kEpsilon);
  const Output output = run(input, {0, 30, 131});
  for (size_t j = 0; j < 3; ++j)
    EXPECT_NEAR(output.states[0][3 + j], 0.9 + 0.1 * expected.unbiased[j], 1e-7) << "feature " << j;
}

TEST(BatchNormTest, InPlaceIsTheSame) {
  Input input = normal_input(37, 11, 2);
  const Output apart = run(input, kCuts[3]);
  input.in_place = true;
  EXPECT_EQ(run(input, kCuts[3]), apart);
}

TEST(BatchNormTest, RanksChangeRoundingOnly) {
  const Input input = normal_input(37, 11, 5);
  const Output one = run(input, kCuts[0]);
  for (const auto& cuts : kCuts) {
    const Output many = run(input, cuts);
    expect_near("y", many.y, to_numbers(one.y), 1e-6);
    expect_near("dx", many.dx, to_numbers(one.dx), 1e-6);
    expect_near("dweight", many.dweight, to_numbers(one.dweight), kTolerance);
    expect_near("dbias", many.dbias, to_numbers(one.dbias), kTolerance);
    for (const auto& states : many.states) {
      expect_near("states", states, to_numbers(one.states[0]), 1e-6);
      EXPECT_EQ(states, many.states[0]);
    }
  }
}

// Small integers over 64 tokens: sums, means and squares are exact in double, whoever adds them up. (Gradients of
// parameters are summed over ranks in float, by the buckets, so dweight, which has fractions, is left out.)
TEST(BatchNormTest, ExactSumsAreTheSameBitsOnAnyRanks) {
  Input input = normal_input(64, 13, 3);
  for (Numbers* numbers : {&input.x, &input.dy})
    for (double& value : *numbers) value = std::round(3 * value);
  const Output one = run(input, {0, 64});
  for (const std::vector<int64_t>& cuts : {std::vector<int64_t>{0, 1, 64}, {0, 40, 40, 64}, {0, 0, 21, 50, 64}}) {
    const Output many = run(input, cuts);
    EXPECT_EQ(many.y, one.y);
    EXPECT_EQ(many.dbias, one.dbias);
    for (const auto& states : many.states) EXPECT_EQ(states, one.states[0]);
    expect_near("dx", many.dx, to_numbers(one.dx), 1e-6);
  }
}

TEST(BatchNormTest, RunningStatisticsOverSeveralSteps) {
  const Input input = normal_input(37, 11, 6);
  Numbers expected(11, 0.0);
  expected.resize(22, 1.0);
  for (int64_t step = 0; step < input.steps; ++step) {
    const BatchNorm batch = batch_norm(input.step_of(input.x, step), input.weight, input.bias, 1e-5);
    for (size_t j = 0; j < 11; ++j) {
      expected[j] = 0.9 * expected[j] + 0.1 * batch.mean[j];
      expected[11 + j] = 0.9 * expected[11 + j] + 0.1 * batch.unbiased[j];
    }
  }
  for (const auto& cuts : kCuts) expect_near("states", run(input, cuts).states[0], expected, 1e-6);
}

TEST(BatchNormTest, FewerThanTwoTokensLeaveTheRunningStatistics) {
  for (const int64_t tokens : {0, 1}) {
    const Input input = normal_input(tokens, 5);
    const Output output = run(input, {0, 0, tokens});
    for (const auto& states : output.states) EXPECT_EQ(states, (std::vector<float>{0, 0, 0, 0, 0, 1, 1, 1, 1, 1}));
    for (const float y : output.y) EXPECT_TRUE(std::isfinite(y));
    for (const float dx : output.dx) EXPECT_NEAR(dx, 0.0, 1e-5);  // one token is its own mean
    EXPECT_EQ(output.dbias[0], tokens == 1 ? static_cast<float>(input.dy[0]) : 0.0F);
  }
}

TEST(BatchNormTest, EvaluationUsesTheRunningStatistics) {
  constexpr int64_t kTokens = 9;
  constexpr int64_t kWidth = 7;
  const Input input = normal_input(kTokens, kWidth);
  run_ranks(2, [&](Communicator& world) {
    Parameters parameters;
    SyncBatchNorm layer(parameters, "norm", kWidth);
    parameters.allocate({}, 1);
    std::copy(input.weight.begin(), input.weight.end(), parameters.values().begin());
    std::copy(input.bias.begin(), input.bias.end(), parameters.values().begin() + kWidth);
    for (size_t j = 0; j < kWidth; ++j) {
      parameters.states()[j] = static_cast<float>(j);
      parameters.states()[kWidth + j] = 0.25F * static_cast<float>(j * j);  // 0 included
    }
    const std::vector<float> before(parameters.states().begin(), parameters.states().end());
    Stream stream;
    Arena arena;
    StepContext context{stream, arena, world};
    context.training = false;
    Tensor<float> x(input.x);
    Tensor<float> y(kTokens * kWidth);
    layer.forward(context, x.view(kTokens, kWidth), y.view(kTokens, kWidth));
    Numbers expected(input.x);
    for (size_t i = 0; i < expected.size(); ++i) {
      const size_t j = i % kWidth;
      const double deviation = std::sqrt(before[kWidth + j] + double{SyncBatchNorm::kEpsilon});
      expected[i] = (expected[i] - before[j]) / deviation * input.weight[j] + input.bias[j];
    }
    reference::expect_near("y", y, expected, kTolerance);
    EXPECT_EQ(before, std::vector<float>(parameters.states().begin(), parameters.states().end()));
    EXPECT_EQ(world.ledger()[Purpose::kBatchNorm].calls, 0);
    EXPECT_EQ(arena.peak(), 0);
    layer.forward(context, x.view(kTokens, kWidth), x.view(kTokens, kWidth));
    EXPECT_TRUE(same_bits(x, y));
    EXPECT_THROW(layer.backward(context, y.view(kTokens, kWidth), y.view(kTokens, kWidth)), InternalError);
  });
}

TEST(BatchNormTest, DoesNotDependOnTheThreads) {
  Input input = normal_input(300, 203);
  std::vector<Output> seen;
  for (const int count : {1, 2, 3}) {
    input.threads = count;
    seen.push_back(run(input, {0, 300}));
  }
  for (const Output& output : seen) EXPECT_EQ(output, seen[0]);
}

TEST(BatchNormTest, WrongShapesAreNamed) {
  Stream stream;
  Tensor<float> x(12);
  Tensor<double> sums(4, 0.0);
  EXPECT_THROW(batch_norm_sums(stream, x.view(3, 4), sums.view()), InternalError);
}

}  // namespace
}  // namespace pkmesh
