// SPDX-License-Identifier: Apache-2.0
#include "launcher/memory_plan.h"

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "comm/self.h"
#include "comm/thread.h"
#include "launcher/evaluator.h"
#include "runtime/process_memory.h"
#include "tests/io/temporary_folder.h"
#include "tests/launcher/tiny_run.h"

namespace pkmesh {
namespace {

// Ranks of one host share its memory: what one alone could hold is too much for two.
TEST(MemoryPlan, WhatTheRanksOfAHostHoldTogetherMustFit) {
  const auto plan_of = [](double share) {
    MemoryPlan plan;
    plan.lines = {{"table", "rows", static_cast<int64_t>(share * process_memory().machine_total)}};
    return plan;
  };
  for (const int ranks : {1, 2})
    run_ranks(ranks, [&](Communicator& world) {
      EXPECT_NO_THROW(check_fits(plan_of(0.45), world, Device{}));
      if (ranks == 1)
        EXPECT_NO_THROW(check_fits(plan_of(0.55), world, Device{}));
      else
        EXPECT_THROW(check_fits(plan_of(0.55), world, Device{}), UserError);
      EXPECT_THROW(check_fits(plan_of(1.1), world, Device{}), UserError);
    });
}

const MemoryPlan::Line& line_of(const MemoryPlan& plan, const std::string& what) {
  const auto line = std::ranges::find(plan.lines, what, &MemoryPlan::Line::what);
  PKM_CHECK(line != plan.lines.end(), "no line for {}", what);
  return *line;
}

// What a rank's arena held is at least half of what was planned, and not more.
void expect_planned(const MemoryPlan& plan, const Arena& arena) {
  const auto planned = static_cast<double>(line_of(plan, "activations").bytes);
  const auto held = static_cast<double>(arena.peak());
  EXPECT_LE(held, planned);
  EXPECT_GE(held, 0.5 * planned);
}

// Most of a lookup's memory is not its vectors here: rows are narrow, and what a selection takes on each leg counts.
TEST(MemoryPlan, ActivationsAreWhatTheArenaHolds) {
  TemporaryFolder folder;
  const Tokens tokens = written_tokens(folder.path(), tiny::ids(5000), tiny::kVocabulary);
  for (const auto& [ranks, each] : {std::pair{1, 1}, {4, 4}, {4, 1}, {4, 2}})
    for (const char* const type : {"FP32", "BF16"}) {
      SCOPED_TRACE(fmt::format("{} ranks, {} on a host, {}", ranks, each, type));
      const config::Config config =
          tiny::config({"train.batch=64", "model.memory.0.neighbours=12", "model.memory.0.heads=8",
                        "model.memory.0.key_width=2", fmt::format("model.memory.0.exchange_type={}", type)});
      ThreadOptions hosts;
      for (int rank = 0; rank < ranks; ++rank) hosts.host_of_rank.push_back(rank / each);
      const auto body = [&](Communicator& world) {
        Trainer trainer = tiny::trainer(config, world, tokens);
        trainer.step();
        expect_planned(plan_memory(config, tiny::kVocabulary, world.hosts(), DeviceKind::kCpu),
                       trainer.model().arena());
      };
      run_ranks(ranks, body, hosts);
    }
}

TEST(MemoryPlan, AnEvaluationTakesWhatIsPlannedForReading) {
  TemporaryFolder folder;
  const Tokens tokens = written_tokens(folder.path(), tiny::ids(40000), tiny::kVocabulary);
  for (const char* const memory : {"model.memory=[]", "model.memory.0.placement=REPLACE", "model.memory.0.heads=8",
                                   "model.memory.0.placement=AFTER"})
    for (const int ranks : {1, 2}) {
      SCOPED_TRACE(fmt::format("{}, {} ranks", memory, ranks));
      const config::Config config = tiny::config({memory});
      run_ranks(ranks, [&](Communicator& world) {
        Model model(config, world, {}, tiny::kVocabulary);
        evaluate(model, tokens, 0, windows_at_once(config.model().context()));
        expect_planned(plan_reading(config, tiny::kVocabulary, world.hosts(), DeviceKind::kCpu, Reading::kEvaluation),
                       model.arena());
      });
    }
}

// Four sequences on three ranks: a rank has two at most, but all together read 512 rows of a table for each of whose 81
// rows 648 would be many. So a rank keeps the output gradients of what arrives and not a sum for each row.
TEST(MemoryPlan, RowsAreReadOftenOrNotByWhatAllRanksReadTogether) {
  const config::Config config = tiny::config({"train.batch=4", "model.memory.0.sub_keys=9"});
  const int64_t tokens = 2 * config.model().context();
  const MemoryPlan plan = plan_memory(config, tiny::kVocabulary, Hosts::one(3), DeviceKind::kCpu);
  constexpr int64_t kReads = 8;       // of a token
  constexpr int64_t kPairs = 3;       // with owners
  constexpr int64_t kSelection = 48;  // bytes on their way through the sort
  EXPECT_EQ(line_of(plan, "row gradients").bytes,
            tokens * (kPairs * config.model().width() * int64_t{sizeof(float)} + kReads * kSelection));
}

// Of 16 tokens of 32 floats: rows and gradients, here and on their way; where a rank has more tokens, or no network to
// hide from, inputs are read from the table.
TEST(MemoryPlan, RowsOfInputsAreCountedWhereTheyAreApart) {
  const auto rows = [](const char* batch, const Hosts& hosts) {
    const MemoryPlan plan = plan_memory(tiny::config({batch}), tiny::kVocabulary, hosts, DeviceKind::kCpu);
    int64_t bytes = 0;
    for (const auto& line : plan.lines) bytes += line.what == "input embeddings" ? line.bytes : 0;
    return bytes;
  };
  EXPECT_EQ(rows("train.batch=4", Hosts::even(4, 2)), 4 * 16 * 32 * int64_t{sizeof(float)});
  EXPECT_EQ(rows("train.batch=4", Hosts::one(4)), 0);
  EXPECT_EQ(rows("train.batch=8", Hosts::even(4, 2)), 0);
}

TEST(MemoryPlan, GeneratingKeepsAContextInEachBlock) {
  const config::Config config = tiny::config();
  const auto plan = plan_reading(config, tiny::kVocabulary, Hosts::one(1), DeviceKind::kCpu, Reading::kGeneration);
  EXPECT_EQ(line_of(plan, "context").bytes, 2 * 2 * 16 * 32 * int64_t{sizeof(float)});
}

// A selection's gradient makes a record for each half: 32 bytes, beside chunks of their sums and a number per sub-key.
TEST(MemoryPlan, KnowsTheScratchOfAGpusKernels) {
  const config::Config config =
      tiny::config({"train.batch=4096", "model.memory.0.heads=4", "model.memory.0.neighbours=8"});
  const auto scratch_of = [&](DeviceKind device) {
    int64_t bytes = 0;
    for (const auto& line : plan_memory(config, tiny::kVocabulary, Hosts::one(1), device).lines)
      if (line.what == "scratch of kernels") bytes += line.bytes;
    return bytes;
  };
  EXPECT_EQ(scratch_of(DeviceKind::kCpu), 0);
  const int64_t records = int64_t{4096} * config.model().context() * 4 * 8 * 2;
  EXPECT_GE(scratch_of(DeviceKind::kCuda), kBlasWorkspaceBytes + records * 32);
  EXPECT_LE(scratch_of(DeviceKind::kCuda), kBlasWorkspaceBytes + records * 33);
}

TEST(MemoryPlan, EveryRankHasABitForEachSlot) {
  const config::Config config = tiny::config({});
  const TableShape table = model_shape(config, tiny::kVocabulary).memories.front().table;
  for (const int ranks : {1, 4}) {
    const auto plan =
        plan_reading(config, tiny::kVocabulary, Hosts::one(ranks), DeviceKind::kCpu, Reading::kEvaluation);
    const int64_t row_bytes = table.width * bytes_of(table.type) + ValueTable::kUsageBytes;
    EXPECT_EQ(line_of(plan, "table " + table.name).bytes,
              (table.slots + ranks - 1) / ranks * row_bytes + (table.slots + 7) / 8);
  }
}

// The plan adds up by hand what the layers register.
TEST(MemoryPlan, CountsTheParametersThatTheModelHas) {
  SelfCommunicator world;
  for (const std::string norm : {"POST_LN", "PRE_LN"})
    for (const std::string embedding_norm : {"true", "false"})
      for (const std::string placement : {"REPLACE", "AFTER"})
        for (const std::string output : {"PLAIN", "SWILU"})
          for (const std::string query_norm : {"NONE", "BATCH_NORM", "LAYER_NORM"}) {
            std::vector<std::string> overrides = {
                "model.norm=" + norm, "model.embedding_norm=" + embedding_norm, "model.memory.0.placement=" + placement,
                "model.memory.0.output=" + output, "model.memory.0.query_norm=" + query_norm};
            if (output == "SWILU") overrides.push_back("model.memory.0.value_width=20");
            const TransformerShape shape = model_shape(tiny::config(overrides), tiny::kVocabulary);
            Parameters parameters;
            const Transformer model(shape, parameters, world, {}, 1);
            EXPECT_EQ(count_dense_parameters(shape), parameters.count())
                << fmt::format("{}", fmt::join(overrides, " "));
          }
}

}  // namespace
}  // namespace pkmesh
