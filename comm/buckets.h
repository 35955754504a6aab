// SPDX-License-Identifier: Apache-2.0
// Dense gradients summed over ranks, and what becomes of them: each rank looks after its shares of the parameters,
// which are those of every bucket (Communicator::shares), and all get the values that it computed. In one of two ways.
//
// Behind the computation, where ranks are connected by messages. The flat gradient is cut into buckets from its END to
// its beginning, for parameters stand in forward order, so the last layers' gradients are final first. A bucket's sum
// is issued, without waiting, as soon as all of it is final; what is left to wait for at the end is what the backward
// pass could not hide. The new values go the other way, from the beginning to the end, behind the next forward pass,
// which waits for a layer's before it reads them. Parameters at the beginning may be a head that is apart: its gradient
// is final before all others, and its values are needed after them (layers/context.h, InputRows).
//
// At the end of it, where all ranks share memory: nothing would hide, for the same cores would copy.
//
// Where ranks do not share work (ranks on GPUs) each looks after everything, and no values travel.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "comm/communicator.h"

namespace pkmesh {

class GradientBuckets {
 public:
  struct Options {
    int64_t bucket_bytes = int64_t{16} << 20;  // >= 4
    Wire wire = Wire::kExact;                  // how sums, and changes of values, cross hosts
    int64_t head = 0;                          // parameters; 0: none is apart
  };
  // `gradients` (P) must live as long as this object. In a world of one nothing travels.
  GradientBuckets(Communicator& communicator, std::span<float> gradients, const Options& options);

  // Gradients in a range (of 0..P) are final. All ranks call this alike, from the end to the beginning, and in the head
  // likewise: a range that does not adjoin what is final is not taken in, and nothing is taken back.
  void ready(Share final);
  // All are final. Returns when every gradient in mine() is the sum over ranks, ready for the next step; what else
  // stands there is then undefined.
  void finish();

  // What a rank looks after, and this one: ascending, apart.
  std::vector<Share> shares(int rank) const;
  const std::vector<Share>& mine() const { return mine_; }

  // Values (P) that all ranks have alike change: change(numbers) does it in some of mine(). Where ranks share work it
  // is called bucket by bucket, and what it did is on its way while the next ones change. All ranks have all values
  // once they are waited for; until then nobody may touch them, but a rank may read mine().
  void change(std::span<float> values, const std::function<void(Share numbers)>& change);
  // Returns when all values of a range (of 0..P) have come.
  void wait_for(Share values);

  int64_t head() const { return head_.end > head_.first ? buckets_[static_cast<size_t>(head_.end - 1)].range.end : 0; }
  int64_t bucket_count() const { return std::ssize(buckets_); }
  int64_t issued() const { return std::ssize(sums_); }  // of this step

 private:
  struct Bucket {
    Share range;          // of parameters
    Share numbers;        // of mine()
    int64_t mine_before;  // elements of mine() in the buckets before
    Pending values;       // on their way
  };
  // Buckets [first, end), of which sums are issued from the last to the first.
  struct Region {
    int64_t first = 0;
    int64_t end = 0;
    int64_t issued_from = 0;
    int64_t final_from = 0;  // parameter
  };
  int64_t size() const { return std::ssize(gradients_); }
  Region cut(Share range, int64_t bucket_size);
  Region unissued(const Region& region) const;
  void issue(Region& region);
  void share_out(std::span<float> values, Bucket& bucket, const std::function<void(Share numbers)>& change);

  Communicator& communicator_;
  std::span<float> gradients_;
  Wire wire_;
  bool at_end_;
  std::vector<Bucket> buckets_;  // ascending
  Region head_, rest_;
  std::vector<Share> mine_;
  std::vector<Pending> sums_;  // those that were issued
  // Where changes are rounded:
  std::vector<float> former_;  // values in mine(), of a bucket
  std::vector<bf16> changes_;  // of all mine()
};

}  // namespace pkmesh
