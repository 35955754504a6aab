// SPDX-License-Identifier: Apache-2.0
// In a steady step the host waits for a GPU where docs/architecture.md says that it does, nowhere else, and allocates
// neither device memory nor pinned memory.
#include <gtest/gtest.h>

#include "comm/self.h"
#include "comm/thread.h"
#include "launcher/bench.h"
#include "tests/emulated_device/emulated_device.h"
#include "tests/emulated_device/links.h"
#include "tests/io/temporary_folder.h"
#include "tests/launcher/tiny_run.h"

namespace pkmesh {
namespace {

using Counts = std::map<std::string, int64_t>;

int64_t total(const Counts& counts) {
  int64_t sum = 0;
  for (const auto& [range, count] : counts) sum += count;
  return sum;
}

// Over pinned memory each piece of a collective is waited for twice: until it is computed, until it has been copied.
// The tiny model's collectives are of one piece each.
Counts waits_of_staging(const Ledger& spent, int64_t lookups) {
  Counts waits;
  const auto add = [&](const char* range, int64_t collectives) {
    if (collectives > 0) waits[range] = 2 * collectives;
  };
  add("selections: all_to_all_v", spent[Purpose::kSelections].calls - lookups);  // without the host's own, of counts
  add("partials: all_to_all_v", spent[Purpose::kPartials].calls);
  add("output gradients: all_to_all_v", spent[Purpose::kOutputGradients].calls);
  add("weight gradients: all_to_all_v", spent[Purpose::kWeightGradients].calls);
  add("batch norm: all_reduce", spent[Purpose::kBatchNorm].calls);
  add("dense gradients: all_reduce", spent[Purpose::kDense].calls);
  return waits;
}

struct Case {
  const char* name;
  std::vector<std::string> overrides;
  int64_t lookups = 1;  // in a step; each leg counts
  int each = 0;         // ranks of a host; 0: all on one
};

class SteadyStepOnDevice : public testing::TestWithParam<std::tuple<Case, int, DeviceLink>> {};

TEST_P(SteadyStepOnDevice, WaitsWhereItMustAndAllocatesNothing) {
  constexpr int64_t kWarmUp = 12;  // until no rank is asked for more rows than ever before: then buffers grow
  constexpr int64_t kSteps = 3;
  const auto& [what, ranks, link] = GetParam();
  std::vector<std::string> overrides = what.overrides;
  overrides.push_back(emulated::setting(link));
  const config::Config config = tiny::config(overrides);
  TemporaryFolder folder;
  const Tokens tokens = written_tokens(folder.path(), tiny::ids(5000), tiny::kVocabulary);

  ThreadOptions hosts;
  for (int rank = 0; what.each > 0 && rank < ranks; ++rank) hosts.host_of_rank.push_back(rank / what.each);
  const auto body = [&, lookups = kSteps * what.lookups, ranks = ranks, link = link](Communicator& host) {
    SelfCommunicator self;
    Communicator& world = ranks == 1 ? self : host;
    Trainer trainer = tiny::trainer(config, world, tokens, {DeviceKind::kCuda, host.rank()});
    for (int64_t i = 0; i < kWarmUp; ++i) trainer.step();
    const Ledger before = world.ledger();
    const RuntimeCounters counted = runtime_counters();
    emulated::take_costs();
    for (int64_t i = 0; i < kSteps; ++i) EXPECT_FALSE(trainer.step().skipped);
    const emulated::Costs costs = emulated::take_costs();

    Counts expected;
    if (ranks > 1 && link == DeviceLink::kHostStaged) expected = waits_of_staging(world.ledger() - before, lookups);
    expected["gate"] = kSteps;
    if (ranks > 1) expected["route"] = lookups;
    EXPECT_EQ(costs.waits, expected) << "rank " << host.rank();
    EXPECT_EQ(costs.allocations, Counts()) << "rank " << host.rank();

    EXPECT_EQ(runtime_counters().synchronizations - counted.synchronizations, total(costs.waits));
    EXPECT_EQ(runtime_counters().allocations - counted.allocations, total(costs.allocations));
  };
  run_ranks(ranks, body, hosts);
}

std::string name_of(const testing::TestParamInfo<SteadyStepOnDevice::ParamType>& one) {
  const auto& [what, ranks, link] = one.param;
  return fmt::format("{}_{}_{}", what.name, ranks, link == DeviceLink::kNccl ? "nccl" : "host_staged");
}

INSTANTIATE_TEST_SUITE_P(
    Emulated, SteadyStepOnDevice,
    testing::Combine(
        testing::Values(Case{"fp32", {}},
                        Case{"bf16_rows",
                             {"model.memory.0.row_type=BF16", "values.moment_type=BF16",
                              "values.second_moment=ROW_WISE"}},
                        Case{"bf16_products", {"train.precision=BF16", "values.clip_norm=0"}},
                        Case{"two_tables_accumulate", {"model.memory.0.layers=[0,1]", "train.accumulate=2"}, 4}),
        testing::Values(1, 2, 3), testing::ValuesIn(emulated::links())),
    name_of);

INSTANTIATE_TEST_SUITE_P(EmulatedHosts, SteadyStepOnDevice,
                         testing::Combine(testing::Values(Case{"two_hosts", {}, 2, 2}), testing::Values(4),
                                          testing::ValuesIn(emulated::links())),
                         name_of);

// What a benchmark's step leaves in the queue the next one would pay for, be it another model's.
TEST(BenchOnDevice, WaitsForTheEndOfEachStep) {
  const config::Config config = tiny::config({"train.device=CUDA"});
  const auto waits = [&](int repeats) {
    SelfCommunicator world;
    BenchReport report(/*prints=*/false);
    BenchOptions options;
    options.repeats = repeats;
    emulated::take_costs();
    bench_step(world, config, options, report);
    return emulated::take_costs().waits["no range"];
  };
  EXPECT_EQ(waits(3) - waits(2), 2);  // with the memory, and without
}

}  // namespace
}  // namespace pkmesh
