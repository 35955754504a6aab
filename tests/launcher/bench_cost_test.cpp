// SPDX-License-Identifier: Apache-2.0
// The benchmarks' arithmetic, on numbers small enough to count by hand.
#include "launcher/bench_cost.h"

#include <gtest/gtest.h>

#include <array>

#include "launcher/bench_layer.h"
#include "launcher/bench_machine.h"
#include "launcher/bench_measure.h"
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

}  // namespace
}  // namespace pkmesh
