// SPDX-License-Identifier: Apache-2.0
#include "io/report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "comm/self.h"
#include "io/checkpoint.h"
#include "io/metrics.h"
#include "io/run_folder.h"
#include "runtime/buffer.h"
#include "tests/io/temporary_folder.h"

namespace pkmesh {
namespace {

void expect_holds(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text << "\nexpected: " << part;
}

// A table of 1,000 rows with values and moments, and two dense tensors.
std::string save_one(const std::string& folder) {
  SelfCommunicator world;
  const Buffer<float> weights({}, 2048);
  const Buffer<bf16> values({}, 1000 * 64);
  const Buffer<float> moments({}, 1000);
  CheckpointContents contents;
  contents.dense = {dense_tensor("w", weights.view()), dense_tensor("adam.m/w", weights.view())};
  contents.tables = {
      {"memory",
       1000,
       1000,
       [](int64_t row) { return row; },
       {row_tensor("values", values.view().reshape(1000, 64)), row_tensor("v", moments.view().reshape(1000, 1))}}};
  return save_checkpoint(world, folder, {40, "", "", 255, {}}, contents);
}

TEST(Report, DescribesARun) {
  const TemporaryFolder folder;
  EXPECT_THROW(describe_run(folder.path()), UserError);
  RunFolder run(folder / "run", false);
  run.begin("", {{"pkmesh", "train"}, {{"a", "b"}, {0, 0, 1}}});
  expect_holds(describe_run(run.path()), "no step done yet");
  expect_holds(describe_run(run.path()), "checkpoints: none");
  {
    MetricsFile metrics(run.metrics(), 0);
    metrics.append({{"step", 1}, {"loss", 6.5}, {"step_ms", 900}, {"tokens_per_s", 1000}});
    metrics.append({{"step", 2},
                    {"loss", 3.25},
                    {"step_ms", 412.4},
                    {"tokens_per_s", 254000},
                    {"validation", {{"loss", 3.0}, {"perplexity", 20.0855}}},
                    {"memory", {{"L6", {{"used", 0.632}, {"kl", 0.91}, {"top1", 0.01}, {"hottest_shard", 1.18}}}}}});
    metrics.append({{"step", 3}, {"loss", nullptr}, {"step_ms", 400}, {"tokens_per_s", 260000}});
    metrics.append({{"step", 4}, {"loss", 3.5}});
  }
  save_one(run.checkpoints());
  const std::string text = describe_run(run.path());
  expect_holds(text, "3 ranks on a (2), b (1)\n  pkmesh train\n");
  expect_holds(text, "4 steps, the last is 4\n");
  expect_holds(text,
               "                           first     last     best  at step\n"
               "  loss                    6.5000   3.5000   3.2500        2\n"
               "  validation loss         3.0000   3.0000   3.0000        2\n"
               "  validation perplexity  20.0855  20.0855  20.0855        2\n");
  expect_holds(text, "speed: 412 ms per step, 254k tok/s (median of the last 3)\n");
  expect_holds(text,
               "  memory   used    kl  gini  top-1  hottest shard\n"
               "  L6      63.2%  0.91     -   1.0%          1.18x\n"
               "  (at step 2)\n");
  expect_holds(text, "checkpoints: step_00000040\n");
  EXPECT_EQ(text.find("damaged"), std::string::npos);
  make_folder(run.checkpoints() + "/step_00000050");
  expect_holds(describe_run(run.path()), "checkpoints: step_00000040\n  damaged: " + run.checkpoints() +
                                             "/step_00000050: not a whole checkpoint");
}

TEST(Report, DescribesACheckpoint) {
  const TemporaryFolder folder;
  const std::string path = save_one(folder.path());
  const std::string text = describe_checkpoint(folder.path()).text;
  EXPECT_EQ(describe_checkpoint(path).damaged_files, 0);
  expect_holds(text, "checkpoint " + path + "\n  step 40, written by 1 rank, tokenizer 00000000000000ff");
  expect_holds(text,
               "  adam.m                                1     2.05k  8.00 KiB\n"
               "  parameters                            1     2.05k  8.00 KiB\n"
               "  memory: values BF16 (1000, 64)        1     64.0k   125 KiB\n"
               "  memory: v F32 (1000, 1)               1     1.00k  3.91 KiB\n");
  expect_holds(text,
               "  ranks     dense      rows  bytes per rank\n"
               "  1      16.0 KiB   129 KiB         145 KiB\n"
               "  2      12.0 KiB  64.5 KiB        76.5 KiB\n");
  expect_holds(text, "dense.safetensors");
  EXPECT_EQ(text.find("altered"), std::string::npos);
  File::open_existing(path + "/dense.safetensors").truncate(70);
  expect_holds(describe_checkpoint(path).text, "has 70 bytes, expected");
  EXPECT_EQ(describe_checkpoint(path).damaged_files, 1);
  EXPECT_THROW(describe_checkpoint(folder / "nowhere"), UserError);
}

}  // namespace
}  // namespace pkmesh
