// SPDX-License-Identifier: Apache-2.0
// Health of a table in 1 to 4 shards of uneven sizes, against the definitions over the whole table.
#include <gtest/gtest.h>

#include <array>
#include <bit>

#include "comm/thread.h"
#include "layers/memory/health.h"
#include "runtime/check.h"
#include "tests/reference/health.h"

namespace pkmesh {
namespace {

using reference::Numbers;

struct Table {
  std::vector<uint32_t> counts;
  std::vector<float> weights;
  std::vector<uint8_t> top1;
  int64_t slots() const { return std::ssize(counts); }
};

// To the bit, so that NaN equals itself.
bool same(const MemoryHealth& a, const MemoryHealth& b) {
  using Bits = std::array<uint64_t, sizeof(MemoryHealth) / 8>;
  return std::bit_cast<Bits>(a) == std::bit_cast<Bits>(b);
}

// Rank r has rows [cuts[r], cuts[r + 1]). Checks that all ranks get the same answer.
MemoryHealth health_of(const Table& table, const std::vector<int64_t>& cuts) {
  const size_t ranks = cuts.size() - 1;
  std::vector<MemoryHealth> seen(ranks);
  run_ranks(static_cast<int>(ranks), [&](Communicator& world) {
    const auto rank = static_cast<size_t>(world.rank());
    const auto first = static_cast<size_t>(cuts[rank]);
    const auto rows = static_cast<size_t>(cuts[rank + 1] - cuts[rank]);
    const auto top1 = std::span(table.top1).subspan(table.top1.empty() ? 0 : first, table.top1.empty() ? 0 : rows);
    seen[rank] = memory_health(world, std::span(table.counts).subspan(first, rows),
                               std::span(table.weights).subspan(first, rows), top1, table.slots());
  });
  for (const MemoryHealth& health : seen) EXPECT_TRUE(same(health, seen[0]));
  return seen[0];
}

std::vector<std::vector<int64_t>> splits(int64_t slots) {
  return {
      {0, slots}, {0, slots / 3, slots}, {0, 0, slots - slots / 7, slots}, {0, slots / 2, slots - 1, slots - 1, slots}};
}

void expect_right(const Table& table) {
  const Numbers counts(table.counts.begin(), table.counts.end());
  const Numbers weights(table.weights.begin(), table.weights.end());
  const auto slots = static_cast<double>(table.slots());
  for (const auto& cuts : splits(table.slots())) {
    SCOPED_TRACE(testing::Message() << cuts.size() - 1 << " ranks");
    const MemoryHealth health = health_of(table, cuts);
    const auto used = std::count_if(weights.begin(), weights.end(), [](double weight) { return weight > 0; });
    const auto best = std::count_if(table.top1.begin(), table.top1.end(), [](uint8_t flag) { return flag != 0; });
    EXPECT_DOUBLE_EQ(health.usage, static_cast<double>(used) / slots);
    EXPECT_DOUBLE_EQ(health.top1_usage, static_cast<double>(best) / slots);
    EXPECT_EQ(health.selections, static_cast<int64_t>(reference::sum(counts)));
    EXPECT_NEAR(health.kl_counted, reference::kl_to_uniform(counts), 1e-10);
    EXPECT_NEAR(health.kl_weighted, reference::kl_to_uniform(weights), 1e-10);
    EXPECT_NEAR(health.gini_counted, reference::gini(counts), 1e-10);
    EXPECT_NEAR(health.gini_weighted, reference::gini(weights), 1e-10);
    EXPECT_EQ(health.slots_50, reference::slots_that_hold(0.50, weights));
    EXPECT_EQ(health.slots_90, reference::slots_that_hold(0.90, weights));
    EXPECT_EQ(health.slots_99, reference::slots_that_hold(0.99, weights));
    double hottest = 0;
    for (size_t rank = 0; rank + 1 < cuts.size(); ++rank)
      hottest =
          std::max(hottest, reference::sum(Numbers(counts.begin() + cuts[rank], counts.begin() + cuts[rank + 1])));
    EXPECT_DOUBLE_EQ(health.hottest_shard,
                     hottest * static_cast<double>(cuts.size() - 1) / static_cast<double>(health.selections));
  }
}

// A few slots take most, the order of slots being random; `exponent` 0 is even but for chance.
Table zipf(int64_t slots, double exponent, uint64_t seed) {
  const Random random(seed, "zipf");
  Table table;
  for (int64_t slot = 0; slot < slots; ++slot) {
    const double place = 1.0 + std::floor(random.uniform(slot) * static_cast<float>(slots));
    const auto count = static_cast<uint32_t>(1000.0 * std::pow(place, -exponent) * random.uniform(slots + slot));
    table.counts.push_back(count);
    table.weights.push_back(static_cast<float>(count) * random.uniform(2 * slots + slot));
    table.top1.push_back(count > 3 ? 1 : 0);
  }
  return table;
}

TEST(MemoryHealthTest, RandomTables) {
  for (const int64_t slots : {1, 2, 7, 300, 1500})
    for (const double exponent : {0.0, 0.8, 1.5}) {
      Table table = zipf(slots, exponent, static_cast<uint64_t>(slots));
      table.counts[0] += 3;  // something was read
      table.weights[0] += 0.5F;
      SCOPED_TRACE(testing::Message() << slots << " slots, exponent " << exponent);
      expect_right(table);
    }
}

TEST(MemoryHealthTest, EqualValuesAcrossRanksAreOneRun) {
  Table table = zipf(400, 0.0, 1);
  for (size_t slot = 0; slot < 400; ++slot) {
    table.counts[slot] = static_cast<uint32_t>(slot % 5);
    table.weights[slot] = 0.1F * static_cast<float>(slot % 3 * (slot % 5));
  }
  expect_right(table);
}

TEST(MemoryHealthTest, LargeCounts) {
  Table table = zipf(50, 1.0, 2);
  for (size_t slot = 0; slot < 50; ++slot) table.counts[slot] = 0xFFFFFFFFU - static_cast<uint32_t>(slot * slot);
  expect_right(table);  // 2e11 selections
}

TEST(MemoryHealthTest, EmptyCountersAreZeros) {
  const Table table{std::vector<uint32_t>(20), std::vector<float>(20), {}};
  for (const auto& cuts : splits(20)) EXPECT_TRUE(same(health_of(table, cuts), MemoryHealth{}));
}

TEST(MemoryHealthTest, OneHotSlot) {
  constexpr int64_t kSlots = 64;
  Table table{std::vector<uint32_t>(kSlots), std::vector<float>(kSlots), std::vector<uint8_t>(kSlots)};
  table.counts[40] = 9;
  table.weights[40] = 2.5F;
  table.top1[40] = 1;
  for (const auto& cuts : splits(kSlots)) {
    const MemoryHealth health = health_of(table, cuts);
    EXPECT_DOUBLE_EQ(health.usage, 1.0 / kSlots);
    EXPECT_DOUBLE_EQ(health.top1_usage, 1.0 / kSlots);
    EXPECT_NEAR(health.kl_counted, std::log(kSlots), 1e-12);
    EXPECT_NEAR(health.kl_weighted, std::log(kSlots), 1e-12);
    EXPECT_DOUBLE_EQ(health.gini_counted, 1.0 - 1.0 / kSlots);
    EXPECT_DOUBLE_EQ(health.gini_weighted, 1.0 - 1.0 / kSlots);
    EXPECT_EQ(health.slots_50, 1);
    EXPECT_EQ(health.slots_99, 1);
    EXPECT_EQ(health.hottest_shard, static_cast<double>(cuts.size() - 1));
    EXPECT_EQ(health.selections, 9);
  }
}

TEST(MemoryHealthTest, UniformTable) {
  const Table table{std::vector<uint32_t>(100, 7), std::vector<float>(100, 0.1F), {}};
  for (const auto& cuts : splits(100)) {
    const MemoryHealth health = health_of(table, cuts);
    EXPECT_EQ(health.usage, 1.0);
    EXPECT_EQ(health.top1_usage, 0.0);  // not recorded
    EXPECT_NEAR(health.kl_counted, 0.0, 1e-12);
    EXPECT_NEAR(health.kl_weighted, 0.0, 1e-12);
    EXPECT_NEAR(health.gini_counted, 0.0, 1e-12);
    EXPECT_NEAR(health.gini_weighted, 0.0, 1e-12);
    EXPECT_EQ(health.slots_50, 50);
    EXPECT_EQ(health.slots_90, 90);
    EXPECT_EQ(health.slots_99, 99);
  }
}

TEST(MemoryHealthTest, AWeightThatIsNotFiniteShows) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Table table = zipf(30, 0.5, 3);
    table.weights[29] = bad;
    const MemoryHealth health = health_of(table, {0, 10, 30});
    EXPECT_TRUE(std::isnan(health.kl_weighted));
    EXPECT_TRUE(std::isnan(health.gini_weighted));
    EXPECT_EQ(health.slots_50, 0);
    EXPECT_NEAR(health.gini_counted, reference::gini(Numbers(table.counts.begin(), table.counts.end())), 1e-10);
  }
}

// What travels grows with the rows of a rank, not with the table; equal values hardly travel at all.
TEST(MemoryHealthTest, SendsAboutItsOwnRowsOnly) {
  constexpr int64_t kRows = 2000;
  for (const bool distinct : {true, false})
    run_ranks(4, [&](Communicator& world) {
      std::vector<uint32_t> counts(kRows, 1);
      std::vector<float> weights(kRows, 1.0F);
      for (int64_t row = 0; row < kRows && distinct; ++row)
        weights[static_cast<size_t>(row)] = static_cast<float>(1 + 4 * row + world.rank());
      memory_health(world, counts, weights, {}, 4 * kRows);
      const int64_t small = 4 * 4096;  // samples, sums and counts
      EXPECT_LT(world.ledger()[Purpose::kControl].bytes, small + (distinct ? 16 * kRows : 0));
    });
}

TEST(MemoryHealthTest, RowsThatAreMissingAreAnError) {
  run_ranks(2, [](Communicator& world) {
    const std::vector<uint32_t> counts(3, 1);
    const std::vector<float> weights(3, 1.0F);
    EXPECT_THROW(memory_health(world, counts, weights, {}, 7), InternalError);
    EXPECT_THROW(memory_health(world, counts, std::span(weights).first(2), {}, 6), InternalError);
  });
}

}  // namespace
}  // namespace pkmesh
