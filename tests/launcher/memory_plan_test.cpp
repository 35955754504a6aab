// SPDX-License-Identifier: Apache-2.0
#include "launcher/memory_plan.h"

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "comm/self.h"
#include "comm/thread.h"
#include "runtime/process_memory.h"
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
