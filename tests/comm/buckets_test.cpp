// SPDX-License-Identifier: Apache-2.0
#include "comm/buckets.h"

#include "contract.h"
#include "runtime/check.h"

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

TEST_P(ContractTest, BucketsSumAsOneAllReduceDoes) {
  on_ranks([](Communicator& world) {
    for (const int64_t size : {0, 1, 7, 64, 333})
      for (const int64_t bucket_bytes : {4, 28, 256, 100000}) {
        std::vector<float> gradients(static_cast<size_t>(size));
        std::vector<float> sums(gradients.size());
        GradientBuckets buckets(world, gradients, bucket_bytes);
        // Step 0: nothing is announced. Step 1: layer by layer. Step 2: out of order, twice, and all at once.
        const std::vector<std::vector<int64_t>> announcements = {
            {}, {size, size * 3 / 4, size / 2, size / 4, 0}, {size / 2, size, size / 2, size / 3, size / 2, 0, 0}};
        for (size_t step = 0; step < announcements.size(); ++step) {
          fill(world, static_cast<int>(step), gradients, sums);
          for (const int64_t offset : announcements[step]) buckets.ready_down_to(offset);
          buckets.finish();
          const Share summed = world.all_share_memory() ? buckets.mine() : Share{0, size};
          for (auto i = static_cast<size_t>(summed.begin); i < static_cast<size_t>(summed.end); ++i)
            EXPECT_EQ(gradients[i], sums[i]) << i << " of " << size;
          spoil_but(buckets.mine(), gradients);
          buckets.share_out(gradients);
          EXPECT_EQ(gradients, sums) << size << " gradients, buckets of " << bucket_bytes << " bytes, step " << step;
        }
      }
  });
}

TEST_P(ContractTest, BucketsAreIssuedFromTheEndOnceAllOfThemIsFinal) {
  on_ranks([](Communicator& world) {
    std::vector<float> gradients(10, 1.0F);
    GradientBuckets buckets(world, gradients, 16);  // [6, 10), [2, 6), [0, 2)
    const bool alone = world.size() == 1;
    const bool at_end = alone || world.all_share_memory();  // nothing leaves before the end
    EXPECT_EQ(buckets.bucket_count(), at_end ? 0 : 3);
    const auto issued_after = [&](int64_t offset) {
      buckets.ready_down_to(offset);
      return buckets.issued();
    };
    EXPECT_EQ(issued_after(7), 0);
    EXPECT_EQ(issued_after(6), at_end ? 0 : 1);
    EXPECT_EQ(issued_after(3), at_end ? 0 : 1);
    EXPECT_EQ(issued_after(1), at_end ? 0 : 2);
    buckets.finish();
    EXPECT_EQ(world.ledger()[Purpose::kDense].bytes, alone ? 0 : 40);
    buckets.share_out(gradients);
    EXPECT_EQ(gradients, std::vector<float>(10, static_cast<float>(world.size())));
    EXPECT_THROW(buckets.ready_down_to(11), InternalError);
    EXPECT_THROW(GradientBuckets(world, gradients, 3), InternalError);
  });
}

}  // namespace
}  // namespace pkmesh
