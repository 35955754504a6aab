// SPDX-License-Identifier: Apache-2.0
#include "optim/clipping.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "comm/self.h"
#include "comm/thread.h"
#include "layers/elementwise.h"
#include "runtime/check.h"
#include "runtime/random.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

std::vector<float> random_floats(int64_t count, float scale) {
  std::vector<float> result(static_cast<size_t>(count));
  Random(6, "gradients").normals(0, count, scale, result.data());
  return result;
}

double sum_of_squares(std::span<const float> data) {
  Stream stream;
  double total = 0;
  add_sum_of_squares(stream, Vector<const float>(data.data(), std::ssize(data)), Vector<double>(&total, 1));
  return total;
}

TEST(SumOfSquares, AgreesWithAPlainSumInLongDoubleOverOddSizes) {
  for (const int64_t count : {0, 1, 7, 8, 9, 4095, 4096, 4097, 100003}) {
    const auto data = random_floats(count, 1e3F);
    long double expected = 0;
    for (const float x : data) expected += static_cast<long double>(x) * x;
    EXPECT_NEAR(sum_of_squares(data), static_cast<double>(expected), 1e-12 * static_cast<double>(expected)) << count;
  }
}

TEST(SumOfSquares, DoesNotDependOnTheThreadCount) {
  const auto data = random_floats(300001, 1.0F);
  const auto with_threads = [&](int count) {
    const reference::ThreadScope scope(count);
    return sum_of_squares(data);
  };
  EXPECT_EQ(with_threads(1), with_threads(3));
}

TEST(SumOfSquares, DoesNotOverflowAndKeepsWhatIsNotFinite) {
  const float largest = std::numeric_limits<float>::max();
  EXPECT_TRUE(std::isfinite(sum_of_squares(std::vector<float>(10000, largest))));
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const size_t at : {0, 8191, 9999, 10000}) {
      std::vector<float> data(10001, 1.0F);
      data[at] = bad;
      EXPECT_FALSE(std::isfinite(sum_of_squares(data))) << at;
    }
  }
}

TEST(ClipFactor, IsTorchs) {
  EXPECT_DOUBLE_EQ(clip_factor(3.0, 1.5), 1.5 / (3.0 + 1e-6));
  EXPECT_DOUBLE_EQ(clip_factor(0.5, 1.5), 1.0);
  EXPECT_DOUBLE_EQ(clip_factor(1.5, 1.5), 1.5 / (1.5 + 1e-6));
  EXPECT_DOUBLE_EQ(clip_factor(0.0, 1.5), 1.0);
  EXPECT_DOUBLE_EQ(clip_factor(1e30, 0.0), 1.0) << "0 turns clipping off";
  EXPECT_THROW(clip_factor(std::nan(""), 1.0), InternalError);
}

TEST(Gate, SumsOverRanksAndIsTheSameOnAll) {
  const auto data = random_floats(20001, 1.0F);
  const double alone = sum_of_squares(data);
  for (const int ranks : {1, 2, 3, 4}) {
    run_ranks(ranks, [&](Communicator& world) {
      const Share mine = share_of(std::ssize(data), world.rank(), world.size());
      const double squares =
          sum_of_squares(std::span(data).subspan(static_cast<size_t>(mine.begin), static_cast<size_t>(mine.count())));
      const Gate gate = decide(world, {squares, 2.0 * world.rank(), 1.5, 10});
      EXPECT_TRUE(gate.open());
      EXPECT_NEAR(gate.dense_squares, alone, 1e-12 * alone);
      EXPECT_EQ(gate.values_squares, ranks * (ranks - 1));
      EXPECT_EQ(gate.loss_sum, 1.5 * ranks);
      EXPECT_EQ(gate.tokens, 10 * ranks);
    });
  }
}

TEST(Gate, OneBadRankClosesItForAllAndSaysWhatWasBad) {
  const double bad = std::numeric_limits<double>::infinity();
  for (int what = 0; what < 3; ++what) {
    run_ranks(3, [&](Communicator& world) {
      GateShare share{1, 1, 1, 8};
      if (world.rank() == 1)
        (what == 0 ? share.dense_squares : what == 1 ? share.values_squares : share.loss_sum) = bad;
      const Gate gate = decide(world, share);
      EXPECT_FALSE(gate.open());
      EXPECT_EQ(gate.bad_dense, what == 0 ? 1 : 0);
      EXPECT_EQ(gate.bad_values, what == 1 ? 1 : 0);
      EXPECT_EQ(gate.bad_loss, what == 2 ? 1 : 0);
      EXPECT_EQ(gate.dense_squares, what == 0 ? 2 : 3);
    });
  }
}

TEST(Gate, AStepWithoutTokensDoesNotHappen) {
  SelfCommunicator world;
  EXPECT_FALSE(decide(world, {0, 0, 0, 0}).open());
  EXPECT_FALSE(decide(world, {std::nan(""), std::nan(""), std::nan(""), std::nan("")}).open());
}

}  // namespace
}  // namespace pkmesh
