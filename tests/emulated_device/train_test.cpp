// SPDX-License-Identifier: Apache-2.0
// A GPU trains as the CPU does: the same losses and the same checkpoints, bit for bit, for the emulated kernels are the
// CPU's. What can differ is what the host does around them.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "comm/self.h"
#include "comm/thread.h"
#include "io/file.h"
#include "launcher/evaluator.h"
#include "tests/emulated_device/emulated_device.h"
#include "tests/emulated_device/links.h"
#include "tests/io/temporary_folder.h"
#include "tests/launcher/tiny_run.h"

namespace pkmesh {
namespace {

namespace fs = std::filesystem;

CheckpointFacts at_step(int64_t step) {
  CheckpointFacts facts;
  facts.step = step;
  return facts;
}

Device device_of(DeviceKind kind, const Communicator& world) {
  return {kind, kind == DeviceKind::kCpu ? 0 : world.rank()};
}

std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    files[entry.path().filename()] = read_text(entry.path().string());
  return files;
}

struct Trained {
  std::vector<double> losses;
  std::map<std::string, std::string> checkpoint;
  Evaluation evaluation;
};

// What differs between two runs, in words; a checkpoint's bytes would be too many.
void expect_equal(const Trained& actual, const Trained& expected) {
  EXPECT_EQ(actual.losses, expected.losses);
  ASSERT_EQ(actual.checkpoint.size(), expected.checkpoint.size());
  for (const auto& [name, bytes] : expected.checkpoint)
    EXPECT_TRUE(actual.checkpoint.at(name) == bytes) << name << " differs";
  EXPECT_EQ(actual.evaluation.loss, expected.evaluation.loss);
  EXPECT_EQ(actual.evaluation.tokens, expected.evaluation.tokens);
  ASSERT_EQ(actual.evaluation.memories.size(), expected.evaluation.memories.size());
  for (size_t i = 0; i < expected.evaluation.memories.size(); ++i) {
    EXPECT_EQ(actual.evaluation.memories[i].kl_weighted, expected.evaluation.memories[i].kl_weighted);
    EXPECT_EQ(actual.evaluation.memories[i].top1_usage, expected.evaluation.memories[i].top1_usage);
    EXPECT_EQ(actual.evaluation.memories[i].selections, expected.evaluation.memories[i].selections);
  }
}

class EmulatedTrain : public testing::Test {
 protected:
  void TearDown() override { emulated::set_order(0); }

  // `steps` steps, with a checkpoint after half of them from which a new trainer goes on.
  // `each`: ranks of a host; 0: all on one.
  Trained train(DeviceKind kind, int ranks, std::vector<std::string> overrides,
                DeviceLink link = DeviceLink::kHostStaged, int64_t steps = 4, int each = 0) {
    overrides.push_back(emulated::setting(link));
    // So many rows that they are not read often: the CPU alone would sum them in another order (sum_by_row.h).
    overrides.emplace_back("model.memory.0.sub_keys=24");
    const config::Config config = tiny::config(overrides);
    TemporaryFolder checkpoints;
    Trained trained;
    ThreadOptions hosts;
    for (int rank = 0; each > 0 && rank < ranks; ++rank) hosts.host_of_rank.push_back(rank / each);
    const auto body = [&](Communicator& host) {
      const Device device = device_of(kind, host);
      SelfCommunicator self;
      Communicator& world = ranks == 1 ? self : host;
      std::vector<double> losses;
      std::string saved;
      {
        Trainer first = tiny::trainer(config, world, tokens_, device);
        losses = tiny::losses(first, steps / 2);
        saved = save_checkpoint(world, checkpoints.path(), at_step(steps / 2), first.contents());
      }
      Trainer trainer = tiny::trainer(config, world, tokens_, device);
      trainer.set_steps_done(load_checkpoint(world, saved, trainer.contents()).step);
      for (const double loss : tiny::losses(trainer, steps - steps / 2)) losses.push_back(loss);
      const std::string path = save_checkpoint(world, checkpoints.path(), at_step(steps), trainer.contents());
      const Evaluation evaluation = *evaluate(trainer.model(), tokens_, 3 * 16 * ranks + 1, 16);
      if (world.rank() == 0) trained = {losses, files_of(path), evaluation};
    };
    run_ranks(ranks, body, hosts);
    return trained;
  }

  TemporaryFolder folder_;
  Tokens tokens_ = written_tokens(folder_.path(), tiny::ids(5000), tiny::kVocabulary);
};

struct Case {
  const char* name;
  std::vector<std::string> overrides;
};

class EmulatedTrainOf : public EmulatedTrain, public testing::WithParamInterface<Case> {};

TEST_P(EmulatedTrainOf, EqualsTheCpusBitForBit) {
  for (const int ranks : {1, 2, 3}) {
    SCOPED_TRACE(ranks);
    const Trained expected = train(DeviceKind::kCpu, ranks, GetParam().overrides);
    for (const uint64_t order : {0, 1, 2}) {
      SCOPED_TRACE(order);
      emulated::set_order(order);
      expect_equal(train(DeviceKind::kCuda, ranks, GetParam().overrides), expected);
    }
    emulated::set_order(0);
    for (const DeviceLink link : emulated::links()) {
      if (ranks == 1 || link == DeviceLink::kHostStaged) continue;
      SCOPED_TRACE(to_string(link));
      expect_equal(train(DeviceKind::kCuda, ranks, GetParam().overrides, link), expected);
    }
  }
}

// Lookups in two legs, and what crosses hosts in bf16.
TEST_F(EmulatedTrain, EqualsTheCpusAcrossHosts) {
  for (const char* const type : {"FP32", "BF16"}) {
    const std::vector<std::string> overrides = {fmt::format("model.memory.0.exchange_type={}", type)};
    const Trained expected = train(DeviceKind::kCpu, 4, overrides, DeviceLink::kHostStaged, 4, /*each=*/2);
    for (const DeviceLink link : emulated::links()) {
      SCOPED_TRACE(fmt::format("{} over {}", type, to_string(link)));
      expect_equal(train(DeviceKind::kCuda, 4, overrides, link, 4, /*each=*/2), expected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Emulated, EmulatedTrainOf,
    testing::Values(Case{"block", {"model.memory.0.row_placement=BLOCK"}},
                    Case{"cyclic", {"model.memory.0.row_placement=CYCLIC"}},
                    Case{"hash", {"model.memory.0.row_placement=HASH"}},
                    Case{"accumulate", {"train.accumulate=3", "train.batch=9"}},
                    Case{"fewer_sequences_than_ranks", {"train.batch=2"}},
                    Case{"after_pre_norm", {"model.memory.0.placement=AFTER", "model.norm=PRE_LN"}},
                    Case{"swilu", {"model.memory.0.output=SWILU", "model.memory.0.value_width=24"}},
                    Case{"layer_norm_queries", {"model.memory.0.query_norm=LAYER_NORM"}},
                    Case{"dropout", {"model.dropout=0.1", "model.attention_dropout=0.1"}},
                    Case{"weight_decay", {"optimizer.weight_decay=0.1"}},
                    Case{"shared_table", {"model.memory.0.layers=[0,1]", "model.memory.0.table=both"}},
                    Case{"two_tables", {"model.memory.0.layers=[0,1]"}},
                    Case{"bf16_rows_row_wise",
                         {"model.memory.0.row_type=BF16", "values.moment_type=BF16", "values.second_moment=ROW_WISE"}},
                    Case{"own_steps", {"values.bias_correction=ROW_COUNTER"}},
                    Case{"dense_adam", {"values.algorithm=DENSE_ADAM", "model.memory.0.row_type=BF16"}},
                    Case{"values_not_clipped", {"values.clip_norm=0"}},
                    Case{"small_buckets", {"train.bucket_mib=0.01"}},
                    // Products that are large (layers/gemm_cpu.cpp).
                    Case{"large_products", {"model.width=64", "train.batch=24"}},
                    Case{"large_products_bf16", {"model.width=64", "train.batch=24", "train.precision=BF16"}}),
    [](const auto& one) { return one.param.name; });

}  // namespace
}  // namespace pkmesh
