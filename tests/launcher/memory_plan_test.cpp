// SPDX-License-Identifier: Apache-2.0
#include "launcher/memory_plan.h"

#include <gtest/gtest.h>

#include "comm/thread.h"
#include "runtime/process_memory.h"

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

}  // namespace
}  // namespace pkmesh
