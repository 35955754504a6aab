// SPDX-License-Identifier: Apache-2.0
// A step whose loss or gradients are not finite is skipped on all ranks and alters nothing; loss scales.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "comm/self.h"
#include "comm/thread.h"
#include "tests/launcher/train_fixture.h"

namespace pkmesh {
namespace {

TEST_F(Train, LossScalesChangeNoBit) {
  for (const int ranks : {1, 2}) {
    SCOPED_TRACE(ranks);
    const config::Config config = tiny::config({"train.accumulate=2", "model.dropout=0.1"});
    std::mutex mutex;
    run_ranks(ranks, [&](Communicator& world) {
      Trainer plain = tiny::trainer(config, world, tokens_);
      Trainer scaled = tiny::trainer(config, world, tokens_);
      scaled.scale_losses({.initial = 1024, .growth_interval = 3});
      for (int i = 0; i < 8; ++i) {
        const StepFigures expected = plain.step();
        const StepFigures actual = scaled.step();
        const std::lock_guard lock(mutex);
        EXPECT_EQ(actual.loss, expected.loss);
        EXPECT_EQ(actual.dense_norm, expected.dense_norm);
        EXPECT_EQ(actual.values_norm, expected.values_norm);
        EXPECT_EQ(actual.loss_scale, 1024 << (i / 3));
        EXPECT_EQ(expected.loss_scale, 1);
      }
      EXPECT_TRUE(std::ranges::equal(scaled.model().parameters().values(), plain.model().parameters().values()));
    });
  }
}

TEST_F(Train, AnOverflowSkipsTheStepEverywhereAndHalvesTheLossScale) {
  const config::Config config = tiny::config();
  run_ranks(2, [&](Communicator& world) {
    Trainer trainer = tiny::trainer(config, world, tokens_);
    trainer.scale_losses({.initial = 0x1p140});  // no float
    const auto values = trainer.model().parameters().values();
    const std::vector<float> before(values.begin(), values.end());
    StepFigures figures = trainer.step();
    int skipped = 0;
    for (; figures.skipped && skipped < 40; ++skipped) {
      EXPECT_EQ(figures.loss_scale, std::ldexp(1.0, 140 - skipped));
      EXPECT_NE(figures.why_skipped.find("loss scale was"), std::string::npos);
      EXPECT_TRUE(std::ranges::equal(values, before));
      figures = trainer.step();
    }
    EXPECT_GE(skipped, 5) << "2^128 and more are no floats";
    EXPECT_FALSE(figures.skipped);
    EXPECT_FALSE(std::ranges::equal(values, before));
    EXPECT_TRUE(std::isfinite(figures.dense_norm));
  });
}

// Adam's first update is as large as its rate, however many steps were skipped before it.
TEST_F(Train, AnOverflowIsNoUpdate) {
  const config::Config config = tiny::config();
  SelfCommunicator world;
  Trainer trainer = tiny::trainer(config, world, tokens_);
  trainer.scale_losses({.initial = 0x1p138});  // no float
  const auto values = trainer.model().parameters().values();
  const std::vector<float> before(values.begin(), values.end());
  StepFigures figures = trainer.step();
  ASSERT_TRUE(figures.skipped);
  while (figures.skipped) figures = trainer.step();
  double largest = 0;
  for (size_t i = 0; i < before.size(); ++i) largest = std::max(largest, std::abs(double{values[i]} - before[i]));
  EXPECT_GT(largest, 0.9 * figures.learning_rate);
}

TEST_F(Train, TheLossScaleIsPartOfTheCheckpoint) {
  const LossScaler::Options options = {.initial = 0x1p138, .growth_interval = 3};
  const config::Config config = tiny::config();
  TemporaryFolder checkpoints;
  SelfCommunicator world;
  Trainer whole = tiny::trainer(config, world, tokens_);
  whole.scale_losses(options);
  tiny::losses(whole, 11);
  const std::string path = save_checkpoint(world, checkpoints.path(), at_step(11), whole.contents());
  Trainer resumed = tiny::trainer(config, world, tokens_);
  resumed.scale_losses(options);
  resumed.set_steps_done(load_checkpoint(world, path, resumed.contents()).step);
  for (int i = 0; i < 6; ++i) {
    const StepFigures expected = whole.step();
    const StepFigures actual = resumed.step();
    EXPECT_EQ(actual.loss, expected.loss);
    EXPECT_EQ(actual.loss_scale, expected.loss_scale);
    EXPECT_LT(actual.loss_scale, options.initial);
  }
}

TEST_F(Train, SkipsAStepThatIsNotFiniteOnAllRanksAndAltersNothing) {
  for (const char* const sub_keys : {"12", "40"})  // rows that wait for the gate, and rows that do not
    run_ranks(2, [&](Communicator& world) {
      const config::Config config = tiny::config({std::string("model.memory.0.sub_keys=") + sub_keys});
      Trainer trainer = tiny::trainer(config, world, tokens_);
      tiny::losses(trainer, 2);
      const auto values = trainer.model().parameters().values();
      const float former = values[100];
      if (world.rank() == 1) values[100] = std::numeric_limits<float>::quiet_NaN();  // on one rank only
      const std::vector<std::byte> before = all_of(trainer);
      const StepFigures figures = trainer.step();
      EXPECT_TRUE(figures.skipped);
      EXPECT_EQ(all_of(trainer), before);
      EXPECT_FALSE(figures.why_skipped.empty());
      values[100] = former;
      EXPECT_FALSE(trainer.step().skipped);
    });
}

// Below the memory a gradient overflows that its rows know nothing of: in the middle of the first block's feed-forward
// layer are tiny numbers, whose gradients are huge.
TEST_F(Train, SaysWhatHadMovedWhenAGradientOverflowsBelowTheMemory) {
  SelfCommunicator world;
  Trainer trainer = tiny::trainer(tiny::config({"train.batch=2", "model.memory.0.sub_keys=40"}), world, tokens_);
  const auto scale = [&](const std::string& name, float factor) {
    const auto& entries = trainer.model().parameters().entries();
    const auto entry = std::ranges::find(entries, name, &Parameters::Entry::name);
    ASSERT_NE(entry, entries.end()) << name;
    for (float& x : trainer.model().parameters().values().subspan(entry->offset, entry->count)) x *= factor;
  };
  scale("layers.0.norm1.weight", 1e-3F);
  scale("layers.0.ffn.in.weight", 1e-38F);
  scale("layers.0.ffn.out.weight", 3e38F);
  const auto values = trainer.model().parameters().values();
  const std::vector<float> before(values.begin(), values.end());
  const std::vector<std::byte> rows = all_of_tables(trainer);
  const StepFigures figures = trainer.step();
  EXPECT_TRUE(std::isfinite(figures.loss));
  EXPECT_TRUE(figures.skipped);
  EXPECT_EQ(figures.why_skipped, "not finite: dense gradients on 1 rank; table rows had moved in the backward pass");
  EXPECT_TRUE(std::ranges::equal(values, before));
  EXPECT_NE(all_of_tables(trainer), rows);
}

}  // namespace
}  // namespace pkmesh
