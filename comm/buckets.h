// SPDX-License-Identifier: Apache-2.0
// Dense gradients summed over ranks, in one of two ways.
//
// Behind the backward pass, where ranks are connected by messages: the flat gradient is cut into buckets from its END
// to its beginning, for parameters stand in forward order, so the last layers' gradients are final first. A bucket is
// issued, without waiting, as soon as all of it is final; what is left to wait for at the end is what the backward pass
// could not hide. The cut, and the order of issue, depend on the size alone: the ranks' collectives match whatever the
// calls in between. Afterwards every rank has all sums.
//
// At the end of it, where all ranks share memory: each rank then has the sums of its share alone. Nothing would hide
// behind the backward pass, for the same cores would copy.
//
// Either way, of ranks that share memory each looks after its share, and what it makes of the sums becomes that of the
// others by share_out().
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"

namespace pkmesh {

class GradientBuckets {
 public:
  // `gradients` (P) must live as long as this object. bucket_bytes >= 4; `wire`: how buckets cross hosts. In a world of
  // one nothing travels.
  GradientBuckets(Communicator& communicator, std::span<float> gradients, int64_t bucket_bytes,
                  Wire wire = Wire::kExact);

  // Gradients at `offset` (0..P) and after are final; all ranks call this alike. Never takes anything back: a call
  // with a higher offset than before is nothing.
  void ready_down_to(int64_t offset);
  // All are final. Returns when every gradient in mine() is the sum over ranks, ready for the next step; so are all
  // others, but where all ranks share memory: there they are undefined.
  void finish();
  // What this rank looks after: its share among those with whom it shares memory.
  Share mine() const { return mine_; }
  // Of values (P) that the ranks computed of the sums, each mine(), all have all afterwards.
  void share_out(std::span<float> values);

  int64_t bucket_count() const { return buckets_; }
  int64_t issued() const { return static_cast<int64_t>(pending_.size()); }  // of this step

 private:
  int64_t begin_of(int64_t bucket) const;  // bucket 0 is the last of the span

  Communicator& communicator_;
  std::span<float> gradients_;
  int64_t bucket_size_;  // elements
  Wire wire_;
  bool at_end_;
  Share mine_;
  int64_t buckets_;
  std::vector<Pending> pending_;
};

}  // namespace pkmesh
