// SPDX-License-Identifier: Apache-2.0
#include "comm/buckets.h"

#include <cmath>

#include "contract.h"
#include "runtime/check.h"
#include "runtime/random.h"

namespace pkmesh {
namespace {

// Gradients of one step as this rank has them, and their sum over ranks.
void fill(const Communicator& world, int step, std::vector<float>& mine, std::vector<float>& sum) {
  for (size_t i = 0; i < mine.size(); ++i) {
    mine[i] = whole<float>(world.rank(), static_cast<int64_t>(i) + step);
    sum[i] = 0;
    for (int r = 0; r < world.size(); ++r) sum[i] += whole<float>(r, static_cast<int64_t>(i) + step);
  }
}

// Adds the gradients to the values, each rank in what it looks after.
void add(GradientBuckets& buckets, std::span<const float> gradients, std::span<float> values) {
  buckets.change(values, [&](Share numbers) {
    for (const Share& share : numbers.of(std::span(buckets.mine())))
      for (int64_t i = share.begin; i < share.end; ++i)
        values[static_cast<size_t>(i)] += gradients[static_cast<size_t>(i)];
  });
}

TEST_P(ContractTest, BucketsSumAsOneAllReduceDoesAndShareOutWhatIsMadeOfIt) {
  on_ranks([](Communicator& world) {
    for (const int64_t size : {0, 1, 7, 64, 333})
      for (const int64_t bucket_bytes : {4, 28, 256, 100000})
        for (const int64_t head : {int64_t{0}, size / 3, size}) {
          std::vector<float> gradients(static_cast<size_t>(size));
          std::vector<float> sums(gradients.size());
          std::vector<float> values(gradients.size());
          std::vector<float> expected(gradients.size());
          GradientBuckets buckets(world, gradients, {.bucket_bytes = bucket_bytes, .head = head});
          // Step 0: nothing is announced. Step 1: layer by layer. Step 2: the head first, twice, and all at once.
          const std::vector<std::vector<Share>> announcements = {
              {},
              {{size, size}, {size * 3 / 4, size}, {size / 2, size * 3 / 4}, {size / 4, size / 2}, {0, size / 4}},
              {{0, head}, {size / 2, size}, {size, size}, {size / 2, size}, {0, size}, {0, size}}};
          for (size_t step = 0; step < announcements.size(); ++step) {
            fill(world, static_cast<int>(step), gradients, sums);
            for (const Share& final : announcements[step]) buckets.ready(final);
            buckets.finish();
            for (const Share& share : buckets.mine())
              for (auto i = static_cast<size_t>(share.begin); i < static_cast<size_t>(share.end); ++i)
                EXPECT_EQ(gradients[i], sums[i]) << i << " of " << size;
            add(buckets, gradients, values);
            for (size_t i = 0; i < sums.size(); ++i) expected[i] += sums[i];
            if (step == 1) continue;  // not waited for before the next step's sums
            buckets.wait_for({size / 2, size});
            for (auto i = static_cast<size_t>(size / 2); i < sums.size(); ++i) EXPECT_EQ(values[i], expected[i]) << i;
            buckets.wait_for({0, size});
            EXPECT_EQ(values, expected) << size << " values, buckets of " << bucket_bytes << " bytes, step " << step;
          }
        }
  });
}

TEST_P(ContractTest, BucketsAreIssuedFromTheEndOnceAllOfThemIsFinal) {
  on_ranks([](Communicator& world) {
    std::vector<float> gradients(10, 1.0F);
    GradientBuckets buckets(world, gradients, {.bucket_bytes = 16});  // [0, 2), [2, 6), [6, 10)
    const bool alone = world.size() == 1;
    const bool at_end = alone || world.all_share_memory();  // nothing leaves before the end
    EXPECT_EQ(buckets.bucket_count(), alone ? 0 : at_end ? 1 : 3);
    const auto issued_after = [&](Share final) {
      buckets.ready(final);
      return buckets.issued();
    };
    EXPECT_EQ(issued_after({7, 10}), 0);
    EXPECT_EQ(issued_after({3, 6}), 0) << "what is behind it is not final";
    EXPECT_EQ(issued_after({6, 7}), at_end ? 0 : 1);
    EXPECT_EQ(issued_after({3, 6}), at_end ? 0 : 1);
    EXPECT_EQ(issued_after({1, 3}), at_end ? 0 : 2);
    buckets.finish();
    EXPECT_EQ(world.ledger()[Purpose::kDense].bytes, alone ? 0 : 40);
    std::vector<float> values(10);
    add(buckets, gradients, values);
    buckets.wait_for({0, 10});
    EXPECT_EQ(values, std::vector<float>(10, static_cast<float>(world.size())));
    EXPECT_THROW(buckets.ready({0, 11}), InternalError);
    EXPECT_THROW(GradientBuckets(world, gradients, {.bucket_bytes = 3}), InternalError);
    EXPECT_THROW(GradientBuckets(world, gradients, {.head = 11}), InternalError);
  });
}

TEST_P(ContractTest, AHeadThatIsApartIsIssuedFirstAndEndsWhereItsBucketsEnd) {
  on_ranks([](Communicator& world) {
    std::vector<float> gradients(10, 1.0F);
    GradientBuckets buckets(world, gradients, {.bucket_bytes = 16, .head = 5});  // [0, 1), [1, 5), [5, 6), [6, 10)
    if (world.size() == 1 || world.all_share_memory()) return;
    EXPECT_EQ(buckets.bucket_count(), 4);
    buckets.ready({0, 5});
    EXPECT_EQ(buckets.issued(), 2);
    buckets.ready({6, 10});
    EXPECT_EQ(buckets.issued(), 3);
    buckets.finish();
  });
}

// Rounded changes are rounded alike on all ranks, whoever made them; by steps of whole numbers and of odd ones.
TEST_P(ContractTest, ChangesInBf16AreTheSameOnAllRanks) {
  on_ranks([](Communicator& world) {
    const int64_t size = 3000;
    std::vector<float> gradients(static_cast<size_t>(size));
    std::vector<float> values(gradients.size());
    const Random random(5, "changes");
    for (size_t i = 0; i < values.size(); ++i) values[i] = random.uniform(i) - 0.5F;
    GradientBuckets buckets(world, gradients, {.bucket_bytes = 1024, .wire = Wire::kBf16, .head = 700});
    for (int step = 0; step < 3; ++step) {
      const std::vector<float> before = values;
      for (size_t i = 0; i < gradients.size(); ++i) gradients[i] = random.uniform(i + 10'000) * 0.01F;
      buckets.finish();
      add(buckets, gradients, values);
      buckets.wait_for({0, size});
      std::vector<float> all(values.size() * static_cast<size_t>(world.size()));
      world.all_gather<float>(values, std::span(all), Purpose::kControl);
      for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], values[i % values.size()]) << i;
      // The sum, rounded where it crossed hosts, and its change, rounded.
      for (size_t i = 0; i < values.size(); ++i) {
        const float sum = random.uniform(i + 10'000) * 0.01F * static_cast<float>(world.size());
        EXPECT_NEAR(values[i] - before[i], sum, sum * 0.02F + 1e-7F) << i;
      }
    }
  });
}

}  // namespace
}  // namespace pkmesh
