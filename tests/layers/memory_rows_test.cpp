// SPDX-License-Identifier: Apache-2.0
// Sums over rows and over what reads them, on one owner, where rows are read often: in blocks of rows and columns, by
// row.
#include <algorithm>
#include <cmath>

#include "comm/self.h"
#include "layers/memory/gather_in_blocks.h"
#include "layers/memory/sum_by_row.h"
#include "layers/memory/value_table.h"
#include "runtime/random.h"
#include "tests/reference/tensor.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

constexpr int64_t kBlock = cpu::kBlockRows;

// Each row is read eight times and more, and each pair reads many: rows are read in blocks, gradients by row. Small
// integers: every sum is exact.
template <class T>
void expect_exact_lookup(int64_t row_count, int64_t width, int thread_count) {
  constexpr int64_t kPerPair = 49;
  const int64_t pair_count = row_count * 8 / kPerPair + 1;
  const Random random(12, "often");
  uint64_t at = 0;
  const auto integer = [&] { return static_cast<float>(static_cast<int>(random.bits(at++) % 7) - 3); };
  std::vector<T> table(row_count * width);
  std::ranges::generate(table, [&] { return T(integer()); });
  std::vector<float> gradients(pair_count * width);
  std::ranges::generate(gradients, integer);
  std::vector<Selection> selections(pair_count * kPerPair);
  for (Selection& selection : selections)
    selection = {static_cast<int32_t>(random.bits(at++) % row_count), 0.25F * integer()};
  std::vector<int32_t> offsets(pair_count + 1);
  for (int32_t pair = 0; pair <= pair_count; ++pair) offsets[pair] = pair * kPerPair;

  ASSERT_TRUE(cpu::gathers_in_blocks(std::ssize(selections), pair_count, row_count, width));
  const reference::ThreadScope scope(thread_count);
  Stream stream;
  const TableRows rows = Matrix<T>(table.data(), row_count, width);
  const Vector<const Selection> chosen(selections.data(), std::ssize(selections));
  const Vector<const int32_t> pairs(offsets.data(), pair_count + 1);
  std::vector<float> sums(pair_count * width, NAN);
  std::vector<float> dweights(selections.size(), NAN);
  pooled_gather(stream, rows, chosen, pairs, Matrix<float>(sums.data(), pair_count, width));
  weight_gradients(stream, rows, chosen, pairs, Matrix<const float>(gradients.data(), pair_count, width),
                   Vector<float>(dweights.data(), std::ssize(dweights)));
  std::vector<int32_t> read(static_cast<size_t>(row_count), -1);
  std::vector<float> row_sums(row_count * width, NAN);
  std::vector<float> by_row(selections.size(), NAN);
  const int64_t count =
      sum_by_row(stream, rows, chosen, pairs, Matrix<const float>(gradients.data(), pair_count, width),
                 Vector<float>(by_row.data(), std::ssize(by_row)),
                 {Vector<int32_t>(read.data(), row_count), Matrix<float>(row_sums.data(), row_count, width)});
  EXPECT_EQ(by_row, dweights);
  std::vector<float> row_gradients(row_count * width);
  for (int64_t pair = 0; pair < pair_count; ++pair)
    for (int64_t i = pair * kPerPair; i < (pair + 1) * kPerPair; ++i)
      for (int64_t j = 0; j < width; ++j)
        row_gradients[selections[i].row * width + j] += selections[i].weight * gradients[pair * width + j];
  int64_t next = 0;
  for (int32_t row = 0; row < row_count; ++row) {
    if (std::ranges::find(selections, row, &Selection::row) == selections.end()) continue;
    ASSERT_LT(next, count);
    ASSERT_EQ(read[next], row);
    ASSERT_TRUE(std::equal(row_sums.begin() + next * width, row_sums.begin() + (next + 1) * width,
                           row_gradients.begin() + row * width))
        << row;
    ++next;
  }
  EXPECT_EQ(next, count);
  for (int64_t pair = 0; pair < pair_count; ++pair) {
    std::vector<float> sum(static_cast<size_t>(width));
    for (int64_t i = pair * kPerPair; i < (pair + 1) * kPerPair; ++i) {
      float product = 0;
      for (int64_t j = 0; j < width; ++j) {
        const auto x = static_cast<float>(table[selections[i].row * width + j]);
        sum[j] += selections[i].weight * x;
        product += gradients[pair * width + j] * x;
      }
      ASSERT_EQ(dweights[i], product) << i;
    }
    ASSERT_TRUE(std::equal(sum.begin(), sum.end(), sums.begin() + pair * width)) << pair;
  }
}

// Rows that are read often, of numbers that round: close to double, and the same bits on any number of threads. Few
// output gradients are taken as they lie, many in slices of columns.
TEST(SumByRow, IsCloseToDoubleAndTheSameOnAnyThreads) {
  constexpr int64_t kWidth = 101;
  constexpr int64_t kPerPair = 13;
  constexpr int64_t kRows = 700;
  for (const int64_t pair_count : {900, 5000}) {  // 0.4 and 2 MB
    SCOPED_TRACE(pair_count);
    const Random random(14, "by row");
    std::vector<float> table(kRows * kWidth);
    random.normals(0, std::ssize(table), 1.0F, table.data());
    std::vector<float> gradients(pair_count * kWidth);
    random.normals(1'000'000, std::ssize(gradients), 1.0F, gradients.data());
    std::vector<Selection> selections(pair_count * kPerPair);
    for (size_t i = 0; i < selections.size(); ++i)  // the first rows more often than the others
      selections[i] = {static_cast<int32_t>(random.bits(2 * i) % (1 + random.bits(2 * i + 1) % kRows)),
                       random.uniform(5'000'000 + i)};
    std::vector<int32_t> offsets(pair_count + 1);
    for (int32_t pair = 0; pair <= pair_count; ++pair) offsets[pair] = pair * kPerPair;
    std::vector<double> dots(selections.size());
    std::vector<double> sums(kRows * kWidth);
    for (size_t i = 0; i < selections.size(); ++i)
      for (int64_t j = 0; j < kWidth; ++j) {
        const double gradient = gradients[i / kPerPair * kWidth + j];
        dots[i] += gradient * table[selections[i].row * kWidth + j];
        sums[selections[i].row * kWidth + j] += selections[i].weight * gradient;
      }

    std::vector<float> first_dots;
    std::vector<float> first_sums;
    for (const int count : {1, 3}) {
      const reference::ThreadScope scope(count);
      Stream stream;
      std::vector<float> dweights(selections.size(), NAN);
      std::vector<int32_t> read(kRows);
      std::vector<float> row_sums(kRows * kWidth, NAN);
      const int64_t rows =
          sum_by_row(stream, Matrix<float>(table.data(), kRows, kWidth),
                     Vector<const Selection>(selections.data(), std::ssize(selections)),
                     Vector<const int32_t>(offsets.data(), pair_count + 1),
                     Matrix<const float>(gradients.data(), pair_count, kWidth),
                     Vector<float>(dweights.data(), std::ssize(dweights)),
                     {Vector<int32_t>(read.data(), kRows), Matrix<float>(row_sums.data(), kRows, kWidth)});
      row_sums.resize(static_cast<size_t>(rows * kWidth));
      for (size_t i = 0; i < dweights.size(); ++i)
        ASSERT_NEAR(dweights[i], dots[i], 1e-4 * std::max(1.0, std::abs(dots[i]))) << i;
      for (int64_t u = 0; u < rows; ++u)
        for (int64_t j = 0; j < kWidth; ++j) {
          const double expected = sums[read[u] * kWidth + j];
          ASSERT_NEAR(row_sums[u * kWidth + j], expected, 1e-4 * std::max(1.0, std::abs(expected))) << read[u];
        }
      if (count == 1) {
        first_dots = dweights;
        first_sums = row_sums;
      }
      EXPECT_EQ(dweights, first_dots);
      EXPECT_EQ(row_sums, first_sums);
    }
  }
}

// Small integers: every sum is exact. A step of several passes by row holds each row that it read once, with the sum of
// what all passes left there.
TEST(SumByRow, PassesOfAStepAreAddedUp) {
  constexpr int64_t kRows = 40;
  constexpr int64_t kWidth = 19;
  const SelfCommunicator world;
  ValueTable table({.name = "table", .slots = kRows, .width = kWidth}, world, {}, 1);
  const Random random(15, "passes");
  uint64_t at = 0;
  const auto integer = [&] { return static_cast<float>(static_cast<int>(random.bits(at++) % 7) - 3); };
  Stream stream;
  for (int step = 0; step < 2; ++step) {
    std::vector<float> expected(kRows * kWidth);
    std::vector<bool> read(kRows);
    for (const int64_t most :
         {int64_t{20}, kRows, int64_t{30}}) {  // rows that a pass may read: the second has new ones
      constexpr int64_t kPairs = 50;
      constexpr int64_t kPerPair = 8;
      std::vector<Selection> selections(kPairs * kPerPair);
      for (Selection& selection : selections) selection = {static_cast<int32_t>(random.bits(at++) % most), integer()};
      std::vector<int32_t> offsets(kPairs + 1);
      for (int32_t pair = 0; pair <= kPairs; ++pair) offsets[pair] = pair * kPerPair;
      std::vector<float> gradients(kPairs * kWidth);
      std::ranges::generate(gradients, integer);
      for (size_t i = 0; i < selections.size(); ++i) {
        read[selections[i].row] = true;
        for (int64_t j = 0; j < kWidth; ++j)
          expected[selections[i].row * kWidth + j] += selections[i].weight * gradients[i / kPerPair * kWidth + j];
      }
      std::vector<float> dweights(selections.size());
      table.backward_by_row(stream, Vector<const Selection>(selections.data(), std::ssize(selections)),
                            Vector<const int32_t>(offsets.data(), kPairs + 1),
                            Matrix<const float>(gradients.data(), kPairs, kWidth),
                            Vector<float>(dweights.data(), std::ssize(dweights)));
    }
    const RowGradients& all = table.row_gradients(stream);
    EXPECT_EQ(all.rows.count(), std::ranges::count(read, true));
    ASSERT_EQ(all.weights.count(), all.rows.count()) << "one contribution each";
    for (int64_t u = 0; u < all.rows.count(); ++u)
      for (int64_t j = 0; j < kWidth; ++j)
        ASSERT_EQ(all.weights[u] * all.d_output(all.sources[u], j), expected[all.rows[u] * kWidth + j]) << all.rows[u];
    table.forget_pending();
  }
}

TEST(Pooled, TablesThatAreReadOftenGiveTheSameSums) {
  for (const int64_t rows : {kBlock - 300, kBlock, 2 * kBlock + 100})
    for (const int count : {1, 20}) {
      expect_exact_lookup<float>(rows, 301, count);
      expect_exact_lookup<bf16>(rows, 150, count);
      expect_exact_lookup<fp16>(rows, 80, count);
    }
}

// Pairs of all lengths, none too. Whether a table is gathered in blocks depends on how much is read, so all pairs
// together are read in blocks and each alone is not: a pair's selections by block of rows, and then in their order,
// give the same bits.
TEST(Pooled, BlocksAreAddedOneAfterTheOther) {
  for (const int64_t row_count : {kBlock - 300, kBlock + 1, 3 * kBlock}) {
    SCOPED_TRACE(row_count);
    constexpr int64_t kWidth = 181;
    const Random random(13, "order");
    std::vector<float> table(static_cast<size_t>(row_count * kWidth));
    random.normals(0, std::ssize(table), 1.0F, table.data());
    std::vector<Selection> selections;
    std::vector<int32_t> offsets = {0};
    for (uint64_t at = 0; std::ssize(selections) < 9 * row_count; ++at) {
      for (uint64_t i = 0; i < random.bits(at) % 128; ++i)
        selections.push_back({static_cast<int32_t>(random.bits(1'000'000 + 128 * at + i) % row_count),
                              static_cast<float>(random.bits(9'000'000 + 128 * at + i) % 1000) * 0.0137F});
      offsets.push_back(static_cast<int32_t>(selections.size()));
    }
    const int64_t pairs = std::ssize(offsets) - 1;
    ASSERT_TRUE(cpu::gathers_in_blocks(std::ssize(selections), pairs, row_count, kWidth));
    ASSERT_FALSE(cpu::gathers_in_blocks(127, 1, row_count, kWidth));  // the longest alone
    const TableRows rows = Matrix<float>(table.data(), row_count, kWidth);
    Stream stream;
    std::vector<float> alone(static_cast<size_t>(pairs * kWidth), NAN);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      std::vector<Selection> own(selections.begin() + offsets[pair], selections.begin() + offsets[pair + 1]);
      std::ranges::stable_sort(own, {}, [](const Selection& selection) { return selection.row / kBlock; });
      const int32_t both[2] = {0, static_cast<int32_t>(own.size())};
      pooled_gather(stream, rows, Vector<const Selection>(own.data(), both[1]), Vector<const int32_t>(both, 2),
                    Matrix<float>(alone.data() + pair * kWidth, 1, kWidth));
    }
    for (const int count : {1, 3, 20}) {  // fewer than columns are cut into, and more
      SCOPED_TRACE(count);
      const reference::ThreadScope scope(count);
      std::vector<float> together(alone.size(), NAN);
      pooled_gather(stream, rows, Vector<const Selection>(selections.data(), std::ssize(selections)),
                    Vector<const int32_t>(offsets.data(), std::ssize(offsets)),
                    Matrix<float>(together.data(), pairs, kWidth));
      EXPECT_EQ(together, alone);
    }
  }
}

// More selections than a thread picks at a time, rows of several threads, and some read again and again.
TEST(Usage, CountsEverySelectionOnceOnAnyThreads) {
  constexpr int64_t kRows = 20'000;
  const Random random(15, "usage");
  std::vector<Selection> selections(1300);
  for (size_t i = 0; i < selections.size(); ++i)
    selections[i] = {static_cast<int32_t>(random.bits(2 * i) % (i % 2 == 0 ? kRows : 10)), random.uniform(2 * i + 1)};
  std::vector<uint32_t> counts(kRows);
  std::vector<float> weights(kRows);
  for (const Selection& selection : selections) {
    ++counts[selection.row];
    weights[selection.row] += selection.weight;
  }
  for (const int count : {1, 3}) {
    const reference::ThreadScope scope(count);
    Stream stream;
    std::vector<uint32_t> got_counts(kRows);
    std::vector<float> got_weights(kRows);
    cpu::count_usage(stream, Vector<const Selection>(selections.data(), std::ssize(selections)),
                     Vector<uint32_t>(got_counts.data(), kRows), Vector<float>(got_weights.data(), kRows));
    EXPECT_EQ(got_counts, counts) << count << " threads";
    EXPECT_EQ(got_weights, weights) << count << " threads";
  }
}

}  // namespace
}  // namespace pkmesh
