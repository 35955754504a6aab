// SPDX-License-Identifier: Apache-2.0
// The property that tests everything at once: N ranks compute what one rank computes, and a resumed run what an
// uninterrupted one would have computed.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <mutex>

#include "comm/self.h"
#include "comm/thread.h"
#include "launcher/evaluator.h"
#include "tests/launcher/train_fixture.h"

namespace pkmesh {
namespace {

TEST_F(Train, Learns) {
  const auto losses = run(1, {}, 60);
  EXPECT_LT(losses.back(), 0.8 * losses.front());
}

TEST_F(Train, IsBitIdenticalFromRunToRun) {
  for (const int ranks : {1, 3}) EXPECT_EQ(run(ranks, {}), run(ranks, {}));
}

struct World {
  const char* name;
  std::vector<std::string> overrides;
};

class AnyWorld : public Train, public testing::WithParamInterface<World> {};

TEST_P(AnyWorld, ComputesWhatOneRankComputes) {
  const auto one = run(1, GetParam().overrides);
  for (const int ranks : {2, 3, 4}) {
    SCOPED_TRACE(ranks);
    const auto many = run(ranks, GetParam().overrides);
    expect_near(many, one);
    // Where ranks share no memory, sums come in buckets, and values behind the next forward pass: the same numbers, but
    // where the inputs' part of the embeddings' gradient is added apart.
    const auto apart = run(ranks, GetParam().overrides, 20, /*each=*/1);
    if (input_rows_apart(tiny::config(GetParam().overrides), tiny::kVocabulary, ranks))
      expect_near(apart, many);
    else
      EXPECT_EQ(apart, many);
  }
  // On hosts of two ranks the memory is looked up in two legs; on two ranks and one, in one.
  expect_near(run(4, GetParam().overrides, 20, /*each=*/2), one);
  expect_near(run(3, GetParam().overrides, 20, /*each=*/2), one);
}

INSTANTIATE_TEST_SUITE_P(
    Train, AnyWorld,
    testing::Values(World{"block", {"model.memory.0.row_placement=BLOCK"}},
                    World{"cyclic", {"model.memory.0.row_placement=CYCLIC"}},
                    World{"hash", {"model.memory.0.row_placement=HASH"}}, World{"uneven_shares", {"train.batch=7"}},
                    World{"fewer_sequences_than_ranks", {"train.batch=2"}}, World{"accumulate", {"train.accumulate=3"}},
                    World{"dropout", {"model.dropout=0.1", "model.attention_dropout=0.1"}},
                    World{"pre_norm", {"model.norm=PRE_LN"}}, World{"after", {"model.memory.0.placement=AFTER"}},
                    World{"swilu", {"model.memory.0.output=SWILU", "model.memory.0.value_width=24"}},
                    World{"layer_norm_queries", {"model.memory.0.query_norm=LAYER_NORM"}},
                    World{"shared_table", {"model.memory.0.layers=[0,1]", "model.memory.0.table=both"}},
                    World{"shared_table_two_exchanges",
                          {"model.memory.0.table=both", "model.memory.1.layers=[0]", "model.memory.1.heads=2",
                           "model.memory.1.neighbours=4", "model.memory.1.sub_keys=12", "model.memory.1.key_width=16",
                           "model.memory.1.table=both", "model.memory.1.exchange=POOLED"}},
                    World{"two_tables", {"model.memory.0.layers=[0,1]"}},
                    World{"dense_adam", {"values.algorithm=DENSE_ADAM"}},
                    World{"small_buckets", {"train.bucket_mib=0.01"}},
                    World{"input_rows_apart", {"train.batch=3", "train.bucket_mib=0.001"}},
                    World{"input_rows_apart_pre_norm",
                          {"train.batch=4", "model.norm=PRE_LN", "model.dropout=0.1", "model.embedding_norm=true"}}),
    [](const auto& world) { return world.param.name; });

// 16-bit rows are rounded by numbers that depend on the row, not on the rank.
TEST_F(Train, SixteenBitRowsOnAnyWorld) {
  for (const char* const type : {"BF16", "FP16"}) {
    const std::vector<std::string> overrides = {fmt::format("model.memory.0.row_type={}", type),
                                                "values.moment_type=BF16", "values.second_moment=ROW_WISE"};
    const auto one = run(1, overrides);
    const auto three = run(3, overrides);
    for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(three[i], one[i], 2e-3 * one[i]) << type << " step " << i + 1;
  }
}

TEST_F(Train, VectorsInBf16BetweenHostsStayCloseToFp32) {
  const auto exact = run(4, {}, 20, /*each=*/2);
  for (const char* const exchange : {"AUTO", "POOLED"}) {
    const auto rounded =
        run(4, {fmt::format("model.memory.0.exchange={}", exchange), "model.memory.0.exchange_type=BF16"}, 20, 2);
    EXPECT_NE(rounded, exact) << exchange;
    for (size_t i = 0; i < exact.size(); ++i) EXPECT_NEAR(rounded[i], exact[i], 1e-3 * exact[i]) << "step " << i + 1;
  }
}

TEST_F(Train, Bf16ProductsStayCloseToFp32) {
  const auto exact = run(1, {});
  const auto rounded = run(1, {"train.precision=BF16"});
  EXPECT_NE(rounded, exact);
  for (size_t i = 0; i < exact.size(); ++i) EXPECT_NEAR(rounded[i], exact[i], 1e-2 * exact[i]) << "step " << i + 1;
  const auto three = run(3, {"train.precision=BF16"});
  for (size_t i = 0; i < exact.size(); ++i) EXPECT_NEAR(three[i], rounded[i], 5e-3 * exact[i]) << "step " << i + 1;
}

// Rows that are read once or twice, as most of 1,600 are, move inside the backward pass, behind a gate of their own.
// With a loss scale they wait for the step's gate, as they do on a GPU. Ranks may have more tokens than others, or
// none.
TEST_F(Train, RowsThatMoveInTheBackwardPassHaveTheSameBits) {
  const std::vector<std::vector<std::string>> cases = {
      {},
      {"train.batch=7"},
      {"train.batch=2"},
      {"train.batch=7", "model.memory.0.sub_keys=12"},  // 144 rows: a rank's 3 of 7 sequences, times 3, would be summed
      {"values.clip_norm=0", "model.memory.0.layers=[0,1]"},
      {"model.memory.0.output=SWILU", "model.memory.0.value_width=19"},
      {"model.memory.0.row_type=BF16", "values.moment_type=BF16", "values.second_moment=ROW_WISE"},
      {"model.memory.0.row_type=FP16", "values.bias_correction=ROW_COUNTER"},
      {"values.algorithm=DENSE_ADAM"}};
  for (std::vector<std::string> overrides : cases) {
    overrides.insert(overrides.begin(), "model.memory.0.sub_keys=40");
    for (const int ranks : {1, 3}) {
      SCOPED_TRACE(fmt::format("{} on {}", fmt::join(overrides, " "), ranks));
      const config::Config config = tiny::config(overrides);
      run_ranks(ranks, [&](Communicator& world) {
        Trainer moving = tiny::trainer(config, world, tokens_);
        Trainer waiting = tiny::trainer(config, world, tokens_);
        waiting.scale_losses({.initial = 1});
        const std::vector<std::byte> start = all_of_tables(moving);
        const int64_t tables = std::ssize(moving.model().transformer().tables());
        for (int i = 0; i < 6; ++i) {
          const Ledger before = world.ledger();
          const StepFigures actual = moving.step();
          const Ledger between = world.ledger();
          const StepFigures expected = waiting.step();
          EXPECT_EQ((between - before)[Purpose::kGate].calls, 1 + tables);
          EXPECT_EQ((world.ledger() - between)[Purpose::kGate].calls, 1);
          EXPECT_EQ(actual.loss, expected.loss);
          EXPECT_EQ(actual.dense_norm, expected.dense_norm);
          EXPECT_EQ(actual.values_norm, expected.values_norm);
        }
        EXPECT_EQ(all_of_tables(moving), all_of_tables(waiting));
        EXPECT_NE(all_of_tables(moving), start);
      });
    }
  }
}

// Of 144 rows each is read ten times: they are summed. The norm of all tables is known, and a shared table's gradient
// complete, only behind the backward pass.
TEST_F(Train, RowsWaitWhereTheirUpdateIsNotKnownInTheBackwardPass) {
  for (const std::vector<std::string>& overrides :
       std::vector<std::vector<std::string>>{{},
                                             {"model.memory.0.sub_keys=40", "model.memory.0.layers=[0,1]"},
                                             {"model.memory.0.sub_keys=40", "model.memory.0.layers=[0,1]",
                                              "model.memory.0.table=both", "values.clip_norm=0"},
                                             {"model.memory.0.sub_keys=40", "train.accumulate=2"}}) {
    SelfCommunicator world;
    Trainer trainer = tiny::trainer(tiny::config(overrides), world, tokens_);
    const Ledger before = world.ledger();
    trainer.step();
    EXPECT_EQ((world.ledger() - before)[Purpose::kGate].calls, 1) << fmt::format("{}", fmt::join(overrides, " "));
  }
}

// As many sequences at a time as in training take no more memory than training took, whatever the number of passes.
TEST_F(Train, AnEvaluationFitsWhereTrainingDidAndEndsWhenItIsToldTo) {
  SelfCommunicator world;
  const config::Config config = tiny::config({"train.batch=4"});
  Trainer trainer = tiny::trainer(config, world, tokens_);
  trainer.step();
  trainer.model().begin(/*training=*/false);  // the arena in one piece
  const int64_t held = trainer.model().arena().capacity();
  const auto all = evaluate(trainer.model(), tokens_, 14, 4);
  EXPECT_EQ(trainer.model().arena().capacity(), held);
  const auto one_by_one = evaluate(trainer.model(), tokens_, 14, 1);
  ASSERT_TRUE(all && one_by_one);
  EXPECT_NEAR(all->loss, one_by_one->loss, 1e-5 * all->loss);
  const auto peak_of = [&](const char* layers) {  // a block's memory is the next one's
    Model model(tiny::config({layers}), world, {}, tiny::kVocabulary);
    EXPECT_TRUE(evaluate(model, tokens_, 4, 4));
    return model.arena().peak();
  };
  EXPECT_EQ(peak_of("model.layers=2"), peak_of("model.layers=4"));
  int asked = 0;
  EXPECT_FALSE(evaluate(trainer.model(), tokens_, 14, 4, [&] { return ++asked == 3; }));
  EXPECT_EQ(asked, 3);
}

// Evaluations read the running statistics, which training itself never does.
TEST_F(Train, EvaluatesToWhatOneRankDoes) {
  std::vector<double> losses;
  for (const int ranks : {1, 2, 3})
    run_ranks(ranks, [&](Communicator& world) {
      Trainer trainer = tiny::trainer(tiny::config(), world, tokens_);
      tiny::losses(trainer, 40);
      const auto evaluation = evaluate(trainer.model(), tokens_, 0, 16);
      if (world.rank() == 0) losses.push_back(evaluation->loss);
    });
  for (const double loss : losses) EXPECT_NEAR(loss, losses[0], 1e-6 * losses[0]);
}

// The last window is shorter than the others: the memory's figures are of tokens that there are.
TEST_F(Train, AnEvaluationReadsEachTokenOnceAndNoOther) {
  const config::Config config = tiny::config();
  const auto& memory = config.model().memory(0);
  const int64_t predicted = tokens_.count() - 1;
  ASSERT_NE(predicted % config.model().context(), 0);
  std::vector<Evaluation> of_ranks;
  for (const int ranks : {1, 2, 3}) {
    run_ranks(ranks, [&](Communicator& world) {
      Model model(config, world, {}, tiny::kVocabulary);
      const auto evaluation = evaluate(model, tokens_, 0, 16);
      if (world.rank() == 0) of_ranks.push_back(*evaluation);
    });
    const Evaluation& evaluation = of_ranks.back();
    EXPECT_TRUE(evaluation.whole);
    EXPECT_EQ(evaluation.tokens, predicted);
    EXPECT_EQ(evaluation.memories[0].selections, predicted * memory.heads() * memory.neighbours());
    EXPECT_NEAR(evaluation.loss, of_ranks[0].loss, 1e-5 * of_ranks[0].loss);
  }
}

// A rank reads few rows of the token embeddings where it has one sequence; the fourth may have none.
TEST_F(Train, InputRowsAreApartWhereARankReadsFew) {
  const auto apart = [](const char* batch, int ranks) {
    return input_rows_apart(tiny::config({batch}), tiny::kVocabulary, ranks);
  };
  EXPECT_TRUE(apart("train.batch=3", 3));
  EXPECT_TRUE(apart("train.batch=3", 4));
  EXPECT_TRUE(apart("train.batch=4", 4));
  EXPECT_FALSE(apart("train.batch=3", 2));
  EXPECT_FALSE(input_rows_apart(tiny::config({"train.batch=3", "train.accumulate=3"}), tiny::kVocabulary, 3));
}

// Changes that are rounded on the wire are rounded alike, by whomever: ranks agree, and nearly with one rank.
TEST_F(Train, RoundedChangesLearnAsExactOnesDo) {
  const auto one = run(1, {"train.batch=4"});
  for (const int each : {1, 2}) {
    const auto many = run(4, {"train.batch=4", "train.exchange_type=BF16"}, 20, each);
    for (size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(many[i], one[i], 1e-2 * one[i]) << "step " << i + 1;
    EXPECT_NE(many, run(4, {"train.batch=4"}, 20, each));
  }
}

// Four ranks are on two hosts.
ThreadOptions two_hosts_of_four(int ranks) {
  return ranks == 4 ? ThreadOptions{.host_of_rank = {0, 0, 1, 1}} : ThreadOptions();
}

TEST_F(Train, ResumedRunEqualsTheUninterruptedOneBitForBit) {
  for (const int ranks : {1, 2, 4}) {
    SCOPED_TRACE(ranks);
    const config::Config config = tiny::config(
        {"values.second_moment=ROW_WISE", "model.dropout=0.1", ranks == 4 ? "train.batch=4" : "train.batch=12",
         ranks == 1 ? "model.memory.0.row_type=FP16" : "train.exchange_type=BF16"});
    TemporaryFolder checkpoints;
    const auto body = [&](Communicator& world) {
      Trainer whole = tiny::trainer(config, world, tokens_);
      tiny::losses(whole, 7);
      const std::string path = save_checkpoint(world, checkpoints.path(), at_step(7), whole.contents());
      const auto expected = tiny::losses(whole, 8);

      Trainer resumed = tiny::trainer(config, world, tokens_);
      const CheckpointFacts facts = load_checkpoint(world, path, resumed.contents());
      resumed.set_steps_done(facts.step);
      EXPECT_EQ(tiny::losses(resumed, 8), expected);
      const auto values = whole.model().parameters().values();
      const auto again = resumed.model().parameters().values();
      EXPECT_TRUE(std::equal(values.begin(), values.end(), again.begin(), [](float a, float b) {
        return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
      }));
    };
    run_ranks(ranks, body, two_hosts_of_four(ranks));
  }
}

TEST_F(Train, SavedOnFourRanksGoesOnWithOthers) {
  for (const char* placement : {"BLOCK", "CYCLIC", "HASH"}) {
    const config::Config config = tiny::config({std::string("model.memory.0.row_placement=") + placement});
    TemporaryFolder checkpoints;
    std::string path;
    std::vector<double> expected;
    const auto begin = [&](Communicator& world) {
      Trainer trainer = tiny::trainer(config, world, tokens_);
      tiny::losses(trainer, 5);
      const std::string saved = save_checkpoint(world, checkpoints.path(), at_step(5), trainer.contents());
      const auto losses = tiny::losses(trainer, 10);
      if (world.rank() == 0) path = saved, expected = losses;
    };
    run_ranks(4, begin, std::string_view(placement) == "BLOCK" ? ThreadOptions() : two_hosts_of_four(4));
    for (const int ranks : {1, 2, 3, 4}) {
      SCOPED_TRACE(std::string(placement) + " on " + std::to_string(ranks));
      const auto go_on = [&](Communicator& world) {
        Trainer trainer = tiny::trainer(config, world, tokens_);
        trainer.set_steps_done(load_checkpoint(world, path, trainer.contents()).step);
        expect_near(tiny::losses(trainer, 10), expected);
      };
      run_ranks(ranks, go_on, two_hosts_of_four(ranks));
    }
  }
}

// With what ranks send each other. steady_step_test counts what one rank asks of the heap; an arena asks the system.
TEST_F(Train, AnArenaDoesNotGrowInASteadyStep) {
  const config::Config config = tiny::config();
  run_ranks(2, [&](Communicator& world) {
    Trainer trainer = tiny::trainer(config, world, tokens_);
    tiny::losses(trainer, 4);
    const int64_t growths = trainer.model().arena().growths();
    tiny::losses(trainer, 10);
    EXPECT_EQ(trainer.model().arena().growths(), growths);
  });
}

}  // namespace
}  // namespace pkmesh
