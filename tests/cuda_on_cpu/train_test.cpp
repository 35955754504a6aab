// SPDX-License-Identifier: Apache-2.0
// Training with the CUDA kernels' own code: the losses of the CPU's kernels, to rounding. The update of a step is in
// the next loss, so this holds every kernel of a step and all that the host does around them.
#include <gtest/gtest.h>

#include <cmath>

#include "comm/self.h"
#include "comm/thread.h"
#include "launcher/evaluator.h"
#include "tests/io/temporary_folder.h"
#include "tests/launcher/tiny_run.h"
#include "tests/reference/placed.h"

namespace pkmesh {
namespace {

constexpr double kTolerance = 1e-5;  // of a loss
// BatchNorm takes a feature's mean away, so the queries' bias has no gradient but rounding, of which Adam makes steps
// of full size. Training does not see them; an evaluation does, through the running statistics: two kinds of CPU
// kernels differ there as much as the devices.
constexpr double kBehindBatchNorm = 1e-3;

struct Trained {
  std::vector<double> losses;
  Evaluation evaluation;
};

struct Case {
  const char* name;
  int ranks;
  int64_t steps;
  std::vector<std::string> overrides;
  bool batch_norm = true;
};

class TrainOnCuda : public testing::TestWithParam<Case> {
 protected:
  static int64_t steps() { return reference::quick() ? 3 : GetParam().steps; }

  Trained train(DeviceKind kind) {
    std::vector<std::string> overrides = {"train.batch=4"};  // emulated attention takes its time
    overrides.insert(overrides.end(), GetParam().overrides.begin(), GetParam().overrides.end());
    const config::Config config = tiny::config(overrides);
    const int ranks = GetParam().ranks;
    Trained trained;
    run_ranks(ranks, [&](Communicator& host) {
      SelfCommunicator self;
      Communicator& world = ranks == 1 ? self : host;
      const Device device = {kind, kind == DeviceKind::kCpu ? 0 : host.rank()};
      Trainer trainer = tiny::trainer(config, world, tokens_, device);
      const std::vector<double> losses = tiny::losses(trainer, steps());
      const Evaluation evaluation = *evaluate(trainer.model(), tokens_, 3 * 16 * ranks + 1, 16);
      if (world.rank() == 0) trained = {losses, evaluation};
    });
    return trained;
  }

  TemporaryFolder folder_;
  Tokens tokens_ = written_tokens(folder_.path(), tiny::ids(5000), tiny::kVocabulary);
};

TEST_P(TrainOnCuda, LossesAreTheCpus) {
  const Trained expected = train(DeviceKind::kCpu);
  const Trained actual = train(DeviceKind::kCuda);
  ASSERT_EQ(std::ssize(actual.losses), steps());
  if (steps() >= 20) {
    EXPECT_LT(expected.losses.back(), expected.losses.front() - 0.3) << "nothing was learnt: nothing is shown";
  }
  for (size_t i = 0; i < expected.losses.size(); ++i)
    EXPECT_NEAR(actual.losses[i], expected.losses[i], kTolerance) << "step " << i + 1;
  EXPECT_NEAR(actual.evaluation.loss, expected.evaluation.loss, GetParam().batch_norm ? kBehindBatchNorm : kTolerance);
  EXPECT_EQ(actual.evaluation.tokens, expected.evaluation.tokens);
}

INSTANTIATE_TEST_SUITE_P(
    Emulated, TrainOnCuda,
    testing::Values(Case{"fp32_rows", 1, 20, {}}, Case{"bf16_rows", 1, 20, {"model.memory.0.row_type=BF16"}},
                    Case{"bf16_rows_row_wise",
                         1,
                         8,
                         {"model.memory.0.row_type=BF16", "values.moment_type=BF16", "values.second_moment=ROW_WISE"}},
                    Case{"swilu", 1, 8, {"model.memory.0.output=SWILU", "model.memory.0.value_width=24"}},
                    Case{"dense_adam", 1, 8, {"values.algorithm=DENSE_ADAM"}},
                    Case{"layer_norm_queries", 1, 8, {"model.memory.0.query_norm=LAYER_NORM"}, false},
                    Case{"dropout", 1, 8, {"model.dropout=0.1", "model.attention_dropout=0.1"}},
                    Case{"two_ranks", 2, 20, {"model.memory.0.row_placement=HASH"}},
                    Case{"three_ranks_bf16_rows", 3, 8, {"model.memory.0.row_type=BF16", "train.accumulate=2"}}),
    [](const auto& one) { return one.param.name; });

}  // namespace
}  // namespace pkmesh
