// SPDX-License-Identifier: Apache-2.0
// Each benchmark once at a tiny size. How long anything takes is nobody's business here.
#include "launcher/bench.h"

#include <gtest/gtest.h>

#include <set>

#include "comm/agree.h"
#include "comm/self.h"
#include "comm/thread.h"
#include "io/config.h"
#include "io/file.h"
#include "launcher/commands.h"
#include "tests/io/temporary_folder.h"
#include "tests/launcher/tiny_run.h"

namespace pkmesh {
namespace {

BenchOptions tiny_options() {
  BenchOptions options;
  options.repeats = 2;
  options.ceilings = {.copy_bytes = 1 << 16, .table_bytes = 1 << 16, .reads = 64, .product = 32};
  options.largest_message = 1 << 12;
  options.flat_sub_keys = {8, 16};
  options.flat_width = 8;
  options.flat_tokens = 16;
  options.curve_sub_keys = 64;
  options.curve_width = 8;
  options.curve_tokens = 16;
  options.curve_distinct_tokens = {2, 16};  // of a single one the batch norm leaves nothing but rounding
  return options;
}

config::Config tiny_config(const std::vector<std::string>& overrides = {}) {
  std::vector<std::string> all = {"tokenizer.vocabulary=512"};
  all.insert(all.end(), overrides.begin(), overrides.end());
  return tiny::config(all);
}

TEST(Bench, OpsMeasuresEveryPhase) {
  SelfCommunicator world;
  BenchReport report(/*prints=*/false);
  bench_ops(world, tiny_config(), tiny_options(), report);
  std::set<std::string> names;
  for (const auto& phase : report.figures.at("phases")) {
    names.insert(phase.at("name"));
    EXPECT_GT(phase.at("bytes"), 0) << phase;
    EXPECT_GT(phase.at("floor_ms"), 0) << phase;
    EXPECT_LE(phase.at("ms").at("min"), phase.at("ms").at("median")) << phase;
    EXPECT_LE(phase.at("ms").at("median"), phase.at("ms").at("max")) << phase;
    EXPECT_NE(report.text().find(phase.at("name").get<std::string>()), std::string::npos);
  }
  EXPECT_EQ(names.size(), report.figures.at("phases").size()) << "a name twice";
  for (const char* name :
       {"query forward", "batch norm backward", "select forward", "gather and pool", "dw, row gradients", "sort by row",
        "row gradients + update", "attention backward", "GELU forward", "cross-entropy, training", "layer, whole step"})
    EXPECT_TRUE(names.contains(name)) << name;
  EXPECT_EQ(report.figures.at("ceilings").at("copy").size(), 1);
}

TEST(Bench, OpsTakesOtherKindsOfMemory) {
  SelfCommunicator world;
  BenchReport report(/*prints=*/false);
  bench_ops(world,
            tiny_config({"model.memory.0.row_type=BF16", "model.memory.0.output=SWILU", "model.memory.0.value_width=20",
                         "model.memory.0.query_norm=LAYER_NORM", "values.second_moment=ROW_WISE"}),
            tiny_options(), report);
  EXPECT_FALSE(report.figures.at("phases").empty());
}

TEST(Bench, KernelsTakesEveryKindOfRow) {
  SelfCommunicator world;
  for (const char* const type : {"FP32", "BF16", "FP16"}) {
    BenchReport report(/*prints=*/false);
    bench_kernels(world, tiny_config({fmt::format("model.memory.0.row_type={}", type)}), tiny_options(), report);
    const auto& kernels = report.figures.at("kernels");
    ASSERT_EQ(kernels.size(), 1 + 2 * 5) << "select; five kernels for each of two laws";
    const double elements = std::string(type) == "FP32" ? 4 : 2;
    for (const auto& kernel : kernels) {
      EXPECT_GT(kernel.at("ms").at("median"), 0) << kernel;
      EXPECT_GE(kernel.at("asked_bytes"), kernel.at("floor_bytes")) << kernel;
      if (kernel.at("name") != "gather and pool, uniform") continue;
      // 192 tokens read 8 rows of 32 each, and write one vector of 32 floats.
      EXPECT_EQ(kernel.at("asked_bytes"), 192 * 8 * (8 + 32 * elements) + 192 * 32 * 4) << type;
    }
    EXPECT_LT(kernels[6].at("floor_bytes"), kernels[1].at("floor_bytes")) << "Zipf's law reads fewer distinct rows";
  }
}

TEST(Bench, ExchangeCountsWhatTravels) {
  std::array<nlohmann::json, 2> figures;
  run_ranks(2, [&](Communicator& world) {
    BenchReport report(/*prints=*/false);
    bench_exchange(world, tiny_config(), tiny_options(), report);
    figures[static_cast<size_t>(world.rank())] = report.figures;
  });
  const auto& collectives = figures[0].at("collectives");
  ASSERT_EQ(collectives.size(), 4);
  EXPECT_EQ(collectives[0].at("purpose"), "selections");
  EXPECT_EQ(collectives[0].at("calls"), 3) << "counts, selections, pair lengths";
  const double tokens = 12 * 16;
  const double partials = collectives[1].at("bytes");
  EXPECT_LE(partials, 2 * tokens * 32 * 4) << "at most one vector per token and owner";
  EXPECT_GT(partials, tokens * 32 * 4);
  EXPECT_EQ(collectives[2].at("bytes"), partials) << "an output gradient for each partial sum";
  EXPECT_EQ(collectives[3].at("bytes"), tokens * 8 * 4) << "a scalar per selection";
  EXPECT_EQ(collectives[3].at("bus_bytes"), tokens * 8 * 4 / 2);
  EXPECT_EQ(collectives, figures[1].at("collectives")) << "ranks report one figure";
}

TEST(Bench, ExchangeAloneSaysSo) {
  SelfCommunicator world;
  BenchReport report(/*prints=*/false);
  bench_exchange(world, tiny_config(), tiny_options(), report);
  EXPECT_NE(report.text().find("nothing travels"), std::string::npos);
  EXPECT_FALSE(report.figures.contains("collectives"));
  EXPECT_TRUE(report.figures.contains("lookup_ms"));
}

TEST(Bench, StepComparesWithAndWithoutMemory) {
  run_ranks(2, [&](Communicator& world) {
    BenchReport report(/*prints=*/false);
    bench_step(world, tiny_config(), tiny_options(), report);
    const auto& models = report.figures.at("models");
    ASSERT_EQ(models.size(), 2);
    EXPECT_NE(models[0].at("flops"), models[1].at("flops"));
    EXPECT_GT(report.figures.at("speed_with_over_without").at("min"), 0);
    EXPECT_GT(report.figures.at("memory").at("planned_bytes"), 0);
  });
}

TEST(Bench, ModelAndLayerAlone) {
  run_ranks(2, [&](Communicator& world) {
    BenchReport model(/*prints=*/false);
    bench_model(world, tiny_config(), tiny_options(), model);
    ASSERT_EQ(model.figures.at("models").size(), 1);
    EXPECT_GT(model.figures.at("models")[0].at("ms").at("min"), 0);
    BenchReport layer(/*prints=*/false);
    bench_layer(world, tiny_config(), tiny_options(), layer);
    EXPECT_GE(layer.figures.at("ms").at("median"), layer.figures.at("update_ms").at("min"));
    EXPECT_GT(layer.figures.at("distinct_rows"), 0);
    const auto& phases = layer.figures.at("phases_ms");
    EXPECT_GT(phases.at("select forward").at("min"), 0);
    EXPECT_LT(phases.at("select forward").at("min"), phases.at("memory forward").at("min"));
    EXPECT_LT(phases.at("memory forward").at("min"), layer.figures.at("forward_ms").at("max"));
    EXPECT_GT(layer.figures.at("memory").at("peak_bytes"), 0);
  });
}

TEST(Bench, FlatGoesOverTablesAndRowsRead) {
  const auto flat = [](Communicator& world) {
    BenchReport report(/*prints=*/false);
    bench_flat(world, {}, tiny_options(), report);
    return report.figures;
  };
  SelfCommunicator alone;
  const auto figures = flat(alone);
  const auto& tables = figures.at("tables");
  ASSERT_EQ(tables.size(), 2);
  EXPECT_EQ(tables[1].at("table_bytes"), 16 * 16 * 8 * 4);
  EXPECT_LE(tables[0].at("distinct_rows"), 64);
  EXPECT_GT(tables[0].at("floor_ms"), 0);
  const auto& curve = figures.at("curve");
  ASSERT_EQ(curve.size(), 2);
  EXPECT_GT(curve[0].at("distinct_rows"), curve[1].at("distinct_rows"));
  EXPECT_LE(curve[1].at("distinct_rows"), 2 * 4 * 32) << "two tokens: their heads' neighbours";
  EXPECT_GE(curve[1].at("distinct_rows"), 32);
  EXPECT_TRUE(figures.at("curve_fit").contains("rows"));
  EXPECT_GT(curve[0].at("rows_ms").at("min"), 0);
  EXPECT_LT(curve[0].at("rows_ms").at("min"), curve[0].at("ms").at("max"));
  run_ranks(2, [&](Communicator& world) { EXPECT_EQ(flat(world).at("tables").size(), 2); });
}

TEST(Bench, MemoryIsHeldAgainstThePlan) {
  run_ranks(2, [&](Communicator& world) {
    BenchReport report(/*prints=*/false);
    bench_memory(world, tiny_config({"data.train=", "data.source=BUILT_IN", "tokenizer.kind=BYTE"}), tiny_options(),
                 report);
    const auto& lines = report.figures.at("memory");
    ASSERT_EQ(lines.size(), 6);
    EXPECT_EQ(lines[0].at("of_plan"), 1.0);
    EXPECT_EQ(lines[0].at("bytes").get<double>(), 2 * lines[0].at("rank_bytes").get<double>());
    for (const auto& line : lines) EXPECT_GE(line.at("bytes"), line.at("rank_bytes")) << line;
  });
}

class BenchCommand : public testing::Test {
 protected:
  BenchArguments arguments() const {
    BenchArguments arguments;
    arguments.name = "exchange";
    arguments.repeats = 1;
    arguments.json = folder_ / "figures.json";
    arguments.source.overrides = {"model.width=16",
                                  "model.heads=2",
                                  "model.context=8",
                                  "model.memory.0.sub_keys=8",
                                  "model.memory.0.heads=2",
                                  "model.memory.0.neighbours=4",
                                  "model.memory.0.key_width=8"};
    return arguments;
  }
  TemporaryFolder folder_;
};

TEST_F(BenchCommand, WritesItsFigures) {
  SelfCommunicator world;
  EXPECT_EQ(bench_command(world, arguments()), 0);
  const auto figures = nlohmann::json::parse(read_text(arguments().json));
  EXPECT_EQ(figures.at("bench"), "exchange");
  EXPECT_EQ(figures.at("ranks"), 1);
  EXPECT_TRUE(figures.contains("lookup_ms"));
  const config::Config config = parse_config(figures.at("config").get<std::string>(), "figures");
  EXPECT_EQ(config.model().width(), 16) << "the figures say what was measured";
}

TEST_F(BenchCommand, RefusesBeforeItMeasures) {
  SelfCommunicator world;
  BenchArguments nowhere = arguments();
  nowhere.json = folder_ / "absent/figures.json";
  EXPECT_THROW(bench_command(world, nowhere), UserError);
  BenchArguments wrong = arguments();
  wrong.source.overrides = {"model.widht=16"};
  EXPECT_THROW(bench_command(world, wrong), UserError);
  for (const char* name : {"ops", "kernels", "exchange", "layer", "step"}) {
    BenchArguments dense = arguments();
    dense.name = name;
    dense.source.overrides = {"model.memory=[]"};
    EXPECT_THROW(bench_command(world, dense), UserError) << name;
  }
  for (const char* name : {"ops", "kernels"}) {
    BenchArguments alone = arguments();
    alone.name = name;
    EXPECT_THROW(run_ranks(2, [&](Communicator& two) { bench_command(two, alone); }), UserError) << name;
  }
  EXPECT_FALSE(std::filesystem::exists(arguments().json));
}

}  // namespace
}  // namespace pkmesh
