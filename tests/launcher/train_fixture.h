// SPDX-License-Identifier: Apache-2.0
// Training the tiny model on ranks that are threads.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "comm/thread.h"
#include "tests/io/temporary_folder.h"
#include "tests/launcher/tiny_run.h"

namespace pkmesh {

inline CheckpointFacts at_step(int64_t step) {
  CheckpointFacts facts;
  facts.step = step;
  return facts;
}

class Train : public testing::Test {
 protected:
  // Losses of `steps` steps on `ranks` thread ranks, the same on every rank; all on one host, or `each` on one.
  std::vector<double> run(int ranks, const std::vector<std::string>& overrides, int64_t steps = 20, int each = 0) {
    const config::Config config = tiny::config(overrides);
    std::vector<std::vector<double>> of_rank(static_cast<size_t>(ranks));
    ThreadOptions options;
    for (int rank = 0; rank < ranks && each > 0; ++rank) options.host_of_rank.push_back(rank / each);
    run_ranks(
        ranks,
        [&](Communicator& world) {
          Trainer trainer = tiny::trainer(config, world, tokens_);
          of_rank[static_cast<size_t>(world.rank())] = tiny::losses(trainer, steps);
        },
        options);
    for (const auto& losses : of_rank) EXPECT_EQ(losses, of_rank[0]) << "ranks report one loss";
    return of_rank[0];
  }

  static void expect_near(const std::vector<double>& losses, const std::vector<double>& expected) {
    ASSERT_EQ(losses.size(), expected.size());
    for (size_t i = 0; i < losses.size(); ++i)
      EXPECT_NEAR(losses[i], expected[i], 1e-4 * std::abs(expected[i])) << "step " << i + 1;
  }

  TemporaryFolder folder_;
  Tokens tokens_ = written_tokens(folder_.path(), tiny::ids(5000), tiny::kVocabulary);
};

// What belongs to the rows of this rank: values, moments, counters.
inline std::vector<std::byte> all_of_tables(Trainer& trainer) {
  std::vector<std::byte> all;
  for (const ShardedTable& table : trainer.contents().tables)
    for (const RowTensor& tensor : table.tensors) all.insert(all.end(), tensor.bytes.begin(), tensor.bytes.end());
  return all;
}

// All that a checkpoint of this rank would hold: dense values, statistics, moments, and what belongs to the rows.
inline std::vector<std::byte> all_of(Trainer& trainer) {
  std::vector<std::byte> all = all_of_tables(trainer);
  for (const DenseTensor& tensor : trainer.contents().dense)
    for (const auto& [begin, bytes] : tensor.parts) all.insert(all.end(), bytes.begin(), bytes.end());
  return all;
}

}  // namespace pkmesh
