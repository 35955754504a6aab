// SPDX-License-Identifier: Apache-2.0
// The benchmarks' arithmetic on numbers small enough to count by hand, and each benchmark once at a tiny size. How long
// anything takes is nobody's business here.
#include "launcher/bench.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

#include "comm/agree.h"
#include "comm/self.h"
#include "comm/thread.h"
#include "io/config.h"
#include "io/file.h"
#include "launcher/bench_layer.h"
#include "launcher/commands.h"
#include "tests/io/temporary_folder.h"
#include "tests/launcher/tiny_run.h"

namespace pkmesh {
namespace {

// T 2, d 3, H 2, k 4, n 5, c 6, dv 7; rows in 2 bytes, two fp32 moments. 16 selections of 9 rows.
LookupShape small_lookup() {
  LookupShape shape;
  shape.tokens = 2;
  shape.width = 3;
  shape.heads = 2;
  shape.neighbours = 4;
  shape.sub_keys = 5;
  shape.key_width = 6;
  shape.value_width = 7;
  shape.row_bytes = 7 * 2;
  shape.moment_bytes = 7 * 8;
  shape.distinct_rows = 9;
  shape.distinct_sub_keys = 3;
  return shape;
}

TEST(Cost, Linear) {
  const Cost forward = cost::linear_forward(2, 3, 5);
  EXPECT_EQ(forward.streamed, 4 * (2 * 3 + 3 * 5 + 5 + 2 * 5));  // x, weight, bias, y
  EXPECT_EQ(forward.flops, 2 * 2 * 3 * 5);
  const Cost backward = cost::linear_backward(2, 3, 5);
  EXPECT_EQ(backward.streamed, 4 * (2 * 2 * 3 + 2 * 5 + 3 * 3 * 5 + 2 * 5));  // x, dx; dy; weight, gradient twice; bias
  EXPECT_EQ(backward.flops, 2 * (2 * 2 * 3 * 5) + 2 * 5);
  EXPECT_EQ(forward.bytes(), forward.streamed);
}

TEST(Cost, Attention) {  // three queries of width 4 see 1, 2 and 3 keys; two sequences
  const double product = 2 * (2 * 4 * (1 + 2 + 3));
  EXPECT_EQ(cost::attention_forward(2, 3, 4).flops, 2 * product);
  EXPECT_EQ(cost::attention_backward(2, 3, 4).flops, 5 * product);
  EXPECT_EQ(cost::attention_forward(2, 3, 4).streamed, 4 * (6 * 3 * 4 + 6 * 4));
  EXPECT_EQ(cost::attention_backward(2, 3, 4).streamed, 4 * (6 * 3 * 4 + 2 * 6 * 4 + 6 * 3 * 4));
}

TEST(Cost, Selection) {
  const LookupShape s = small_lookup();
  EXPECT_EQ(s.selections(), 16);
  EXPECT_EQ(s.features(), 12);
  const Cost forward = cost::select_forward(s);
  EXPECT_EQ(forward.flops, 2 * 2 /*tokens*/ * 2 /*heads*/ * 2 /*halves*/ * 5 /*keys*/ * 3 /*width*/);
  EXPECT_EQ(forward.streamed, 4 * (2 * 12 + 2 * 2 * 5 * 3 + 2 * 16));
  const Cost backward = cost::select_backward(s);
  EXPECT_EQ(backward.flops, 2 * 2 * 2 * 2 * 3 /*sub-keys*/ * 3 /*width*/ * 2 /*dquery and dkey*/);
  EXPECT_EQ(backward.streamed, 4 * (2 * 2 * 12 + 3 * 60 + 3 * 16));
}

// A row is moved once, however many selections compute with it.
TEST(Cost, Rows) {
  const LookupShape s = small_lookup();
  const Cost gather = cost::gather(s);
  EXPECT_EQ(gather.rows_read, 9 * 7 * 2);
  EXPECT_EQ(gather.flops, 2 * 16 * 7);
  EXPECT_EQ(cost::weight_gradients(s).bytes(), gather.bytes() + 4 * 16);
  const Cost update = cost::row_update(s);
  EXPECT_EQ(update.rows_updated, 2 * 9 * (7 * 2 + 7 * 8));
  EXPECT_EQ(cost::row_norms(s).rows_updated, 0);
  EXPECT_EQ(cost::row_norms(s).streamed, update.streamed) << "the same gradients, whatever is done with them";
  // dw takes its rows from the update: no more bytes than its own, and its operations.
  const Cost both = cost::row_update_in_backward(s);
  EXPECT_EQ(both.bytes(), update.bytes() + 4 * 16);
  EXPECT_EQ(both.flops, update.flops + cost::weight_gradients(s).flops);
}

TEST(Cost, RowsWhoseGradientsAreSummedInTheBackwardPass) {
  LookupShape s = small_lookup();
  const Cost apart = cost::weight_gradients(s);
  s.summed = true;
  EXPECT_EQ(cost::weight_gradients(s).bytes(), apart.bytes() + 4 * 9 * 7);
  EXPECT_EQ(cost::weight_gradients(s).flops, 2 * apart.flops);
  EXPECT_EQ(cost::sort_rows(s).streamed, 16 * 9 + 12 * 9);
  const Cost update = cost::row_update(s);
  EXPECT_EQ(update.streamed, 8 * 9 + 4 * 9 * 7 + 12 * 9);
  EXPECT_EQ(update.flops, 13 * 9 * 7);
  EXPECT_EQ(cost::row_norms(s).flops, 2 * 9 * 7);
  EXPECT_EQ(cost::row_bound(s).streamed, 4 * (9 * 7 + 9));
}

TEST(Cost, ShapeOfASite) {
  const config::Config config = tiny::config({"model.memory.0.row_type=BF16", "values.second_moment=ROW_WISE"});
  const TransformerShape shape = model_shape(config, tiny::kVocabulary);
  const LookupShape s = lookup_shape(shape.memories[0], row_options(config), 24);
  EXPECT_EQ(s.selections(), 24 * 2 * 4);
  EXPECT_EQ(s.row_bytes, 32 * 2);
  EXPECT_EQ(s.moment_bytes, 32 * 4 + 4);
  EXPECT_EQ(s.distinct_sub_keys, 2) << "four slots need two sub-keys in each half";
}

TEST(Cost, TrainingStep) {  // one block, d 2, FFN 8, 10 tokens in the vocabulary, one sequence of 3
  TransformerShape shape;
  shape.layers = 1;
  shape.vocabulary = 10;
  shape.context = 3;
  shape.block = {.width = 2, .heads = 1, .ffn_width = 8};
  const double products = 3 * 2 * 3 * (2 * 10 + 2 * 6 + 2 * 2 + 2 * 8 + 8 * 2);
  const double attention = (2 + 5) * (2 * 2 * (1 + 2 + 3));
  EXPECT_EQ(cost::step_flops(shape, 1), products + attention);

  MemorySite site;
  site.shape = {.width = 2, .heads = 1, .neighbours = 4, .sub_keys = 5, .key_width = 6, .query_norm = QueryNorm::kNone};
  site.table = {.name = "t", .slots = 25, .width = 2};
  shape.memories = {site};
  const LookupShape s = lookup_shape(site, {}, 3);
  const double memory = 3 * (2 * 3 * 2 * 6) + 3 * 6 /*bias*/ + 2 * 3 * 6 * 5 /*scores*/ +
                        cost::select_backward(s).flops + cost::count_usage(s).flops + 2 * (2 * 12 * 2) +
                        cost::row_bound(s).flops + cost::row_update(s).flops;
  EXPECT_EQ(cost::step_flops(shape, 1), products - 3 * 2 * 3 * 2 * (2 * 8) + attention + memory);
  shape.memories[0].after = true;
  EXPECT_EQ(cost::step_flops(shape, 1), products + attention + memory) << "the feed-forward layer stays";
}

TEST(Ceilings, FloorIsMovingOrComputing) {
  Ceilings ceilings;
  ceilings.copies = {{1e6, 4e9}, {1e8, 2e9}};
  ceilings.rows_read = 1e9;
  ceilings.rows_updated = 0.5e9;
  ceilings.flops = 1e11;
  EXPECT_EQ(ceilings.copy_rate(1), 4e9);
  EXPECT_EQ(ceilings.copy_rate(1e6), 4e9);
  EXPECT_NEAR(ceilings.copy_rate(1e7), 3e9, 1);
  EXPECT_EQ(ceilings.copy_rate(1e9), 2e9);
  EXPECT_DOUBLE_EQ(ceilings.floor_ms(Cost{.streamed = 1e8}), 50);
  EXPECT_DOUBLE_EQ(ceilings.floor_ms(Cost{.streamed = 1e8, .rows_read = 1e7, .rows_updated = 1e7}), 50 + 10 + 20);
  EXPECT_DOUBLE_EQ(ceilings.floor_ms(Cost{.streamed = 1e6, .flops = 1e9}), 10);
  EXPECT_DOUBLE_EQ(ceilings.floor_ms(std::vector<Cost>{{.streamed = 1e8}, {.flops = 1e9}}), 60);
}

TEST(Measure, Spread) {
  const Spread odd = spread_of({3, 1, 2});
  EXPECT_EQ(odd.median, 2);
  EXPECT_EQ(odd.min, 1);
  EXPECT_EQ(odd.max, 3);
  EXPECT_EQ(spread_of({4, 1, 2, 3}).median, 2.5);
  EXPECT_EQ(to_text(Spread{12.34, 0.5, 1234}), "12.3 (0.500-1234)");
}

TEST(Measure, Line) {
  const Line exact = fit_line({1, 2, 4}, {5, 7, 11});
  EXPECT_NEAR(exact.at_zero, 3, 1e-12);
  EXPECT_NEAR(exact.slope, 2, 1e-12);
  EXPECT_NEAR(exact.worst, 0, 1e-12);
  EXPECT_NEAR(fit_line({0, 1, 2}, {1, 4, 1}).worst, 1.0, 1e-12) << "2 at every x: as far from 1 as 1 is";
}

TEST(Measure, EverySampleIsPrepared) {
  int prepared = 0;
  int worked = 0;
  measure_after(
      3, [&] { ++prepared; }, [&] { EXPECT_EQ(++worked, prepared); });
  EXPECT_EQ(worked, 4) << "a warm-up and three samples";
}

TEST(Layer, CountsWhatWasSelected) {
  // Two tokens, one head of three slots, five sub-keys: (0,1) (0,2) (3,1) and three times (4,4).
  std::array<int32_t, 6> slots = {1, 2, 16, 24, 24, 24};
  const Matrix<const int32_t> view(slots.data(), 2, 3);
  EXPECT_EQ(distinct_rows(view), 4);
  EXPECT_EQ(mean_distinct_sub_keys(view, 1, 5), (2 + 2 + 1 + 1) / 4.0);
}

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
