// SPDX-License-Identifier: Apache-2.0
#include "io/batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "runtime/check.h"
#include "tests/io/temporary_folder.h"
#include "tests/io/written_tokens.h"

namespace pkmesh {
namespace {

// Tokens 0, 1, 2, ...: each says where it stands.
Tokens counting(int64_t count, int64_t shard_tokens = 1 << 20) {
  const TemporaryFolder folder;  // the maps outlive the files' names
  std::vector<int32_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  return written_tokens(folder.path(), ids, 1 << 20, shard_tokens);
}

struct Batch {
  std::vector<int32_t> inputs, targets;
};

template <class Source>
Batch fill(const Source& source, SequenceRange range, int64_t context) {
  Batch batch;
  batch.inputs.assign(static_cast<size_t>(range.count() * context), -9);
  batch.targets = batch.inputs;
  source.fill(range, Matrix<int32_t>(batch.inputs.data(), range.count(), context),
              Matrix<int32_t>(batch.targets.data(), range.count(), context));
  return batch;
}
Batch fill(const BatchSampler& sampler, SequenceRange range) {
  return fill(sampler, range, sampler.context());
}

TEST(Permutation, IsABijection) {
  for (const int64_t size : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4097}) {
    for (const int64_t epoch : {0, 1, 7}) {
      const Permutation permutation(size, 5, epoch);
      std::vector<bool> seen(static_cast<size_t>(size));
      for (int64_t i = 0; i < size; ++i) {
        const int64_t image = permutation(i);
        ASSERT_GE(image, 0);
        ASSERT_LT(image, size);
        ASSERT_FALSE(seen[static_cast<size_t>(image)]);
        seen[static_cast<size_t>(image)] = true;
      }
    }
  }
  const Permutation large(int64_t{1} << 45, 5, 0);
  std::set<int64_t> images;
  for (int64_t i = 0; i < 2000; ++i) images.insert(large(i));
  EXPECT_EQ(images.size(), 2000U);
  EXPECT_GT(*images.rbegin(), int64_t{1} << 44);
}

TEST(Permutation, LooksRandomAndDependsOnSeedAndEpoch) {
  constexpr int64_t kSize = 10000;
  const auto images = [](uint64_t seed, int64_t epoch) {
    const Permutation permutation(kSize, seed, epoch);
    std::vector<double> values;
    for (int64_t i = 0; i < kSize; ++i) values.push_back(static_cast<double>(permutation(i)) / kSize - 0.5);
    return values;
  };
  const auto correlation = [](const std::vector<double>& a, const std::vector<double>& b, size_t lag) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[(i + lag) % b.size()];
    return sum / (static_cast<double>(a.size()) / 12);
  };
  const auto a = images(5, 0);
  for (const auto& b : {images(6, 0), images(5, 1)}) EXPECT_LT(std::abs(correlation(a, b, 0)), 0.05);
  std::vector<double> identity(kSize);
  for (size_t i = 0; i < kSize; ++i) identity[i] = static_cast<double>(i) / kSize - 0.5;
  EXPECT_LT(std::abs(correlation(a, identity, 0)), 0.05);
  for (const size_t lag : {1, 2, 3, 4, 8, 64, 128}) EXPECT_LT(std::abs(correlation(a, a, lag)), 0.05) << lag;
}

TEST(BatchSampler, EveryWindowOncePerEpochInputsShiftedByOne) {
  for (const int64_t context : {1, 3, 8}) {
    for (const int64_t count : {9, 16, 17, 100, 101, 250}) {
      const BatchSampler sampler(counting(count), context, 11);
      const int64_t windows = std::max<int64_t>((count - 1) / context - 1, 1);
      std::set<int64_t> offsets;
      for (int64_t epoch = 0; epoch < 20; ++epoch) {
        const Batch batch = fill(sampler, {epoch * windows, (epoch + 1) * windows});
        for (size_t i = 0; i < batch.inputs.size(); ++i) ASSERT_EQ(batch.targets[i], batch.inputs[i] + 1);
        auto tokens = batch.inputs;
        std::ranges::sort(tokens);
        for (size_t i = 1; i < tokens.size(); ++i) ASSERT_EQ(tokens[i], tokens[i - 1] + 1);
        ASSERT_GE(tokens.front(), 0);
        ASSERT_LT(tokens.back() + 1, count);
        offsets.insert(tokens.front());
      }
      if (context == 8 && count > 16) {
        EXPECT_GT(offsets.size(), 4U);
      }
    }
  }
}

TEST(BatchSampler, TheOrderDependsOnSeedAndEpoch) {
  const Tokens tokens = counting(1001);
  const BatchSampler one(tokens, 10, 1);
  const BatchSampler two(tokens, 10, 2);
  constexpr int64_t kWindows = 99;  // in an epoch
  EXPECT_NE(fill(one, {0, kWindows}).inputs, fill(two, {0, kWindows}).inputs);
  EXPECT_NE(fill(one, {0, kWindows}).inputs, fill(one, {kWindows, 2 * kWindows}).inputs);
  EXPECT_EQ(fill(one, {0, kWindows}).inputs, fill(BatchSampler(tokens, 10, 1), {0, kWindows}).inputs);
}

TEST(BatchSampler, AnyRanksAndShardsReadTheSameSequences) {
  const BatchSampler sampler(counting(500), 7, 3);
  const BatchSampler sharded(counting(500, 11), 7, 3);
  for (const int64_t sequences : {1, 5, 12}) {
    for (const int64_t accumulate : {1, 2, 3}) {
      const BatchShape alone{sequences, accumulate};
      for (int64_t step = 0; step < 9; step += 4) {
        const Batch whole = fill(sampler, {step * sequences, (step + 1) * sequences});
        for (int64_t ranks = 1; ranks <= 4; ++ranks) {
          Batch parts;
          for (int64_t micro = 0; micro < accumulate; ++micro) {
            for (int64_t rank = 0; rank < ranks; ++rank) {
              const BatchShape shape{sequences, accumulate, rank, ranks};
              const Batch part = fill(sharded, shape.share(step, micro));
              EXPECT_LE(shape.share(step, micro).count(), shape.largest_share());
              EXPECT_EQ(shape.micro_step(step, micro).begin, alone.share(step, micro).begin);
              parts.inputs.insert(parts.inputs.end(), part.inputs.begin(), part.inputs.end());
              parts.targets.insert(parts.targets.end(), part.targets.begin(), part.targets.end());
            }
          }
          EXPECT_EQ(parts.inputs, whole.inputs);
          EXPECT_EQ(parts.targets, whole.targets);
        }
      }
    }
  }
}

TEST(BatchSampler, TooFewTokensAreTheUsersError) {
  EXPECT_THROW(BatchSampler(counting(0), 8, 1), UserError);
  EXPECT_THROW(BatchSampler(counting(8), 8, 1), UserError);
  EXPECT_NO_THROW(BatchSampler(counting(9), 8, 1));
}

TEST(EvaluationWindows, EachTokenIsPredictedOnce) {
  for (const int64_t context : {1, 4, 7}) {
    for (const int64_t count : {2, 5, 8, 9, 30}) {
      const EvaluationWindows windows(counting(count, 6), context);
      int64_t next = 0;
      for (int64_t window = 0; window < windows.count(); ++window) {
        const Batch batch = fill(windows, {window, window + 1}, windows.length(window));
        for (size_t i = 0; i < batch.inputs.size(); ++i, ++next) {
          EXPECT_EQ(batch.inputs[i], next);
          EXPECT_EQ(batch.targets[i], next + 1);
        }
      }
      EXPECT_EQ(next, count - 1);
      EXPECT_EQ(windows.targets(), count - 1);
      const int64_t whole = windows.targets() / context;
      EXPECT_EQ(fill(windows, {0, whole}, context).targets.size(), static_cast<size_t>(whole * context));
      EXPECT_THROW(fill(windows, {0, windows.count() + 1}, context), InternalError);
      if (whole > 0 && whole < windows.count()) {  // one is shorter
        EXPECT_THROW(fill(windows, {0, windows.count()}, context), InternalError);
      }
    }
  }
  EXPECT_THROW(EvaluationWindows(counting(1), 4), UserError);
}

}  // namespace
}  // namespace pkmesh
