// SPDX-License-Identifier: Apache-2.0
// Dense gradients summed over ranks behind the backward pass. The flat gradient is cut into buckets from its END to its
// beginning: parameters stand in forward order, so the last layers' gradients are final first. A bucket is issued,
// without waiting, as soon as all of it is final; what is left to wait for at the end is what the backward pass could
// not hide.
//
// The cut, and the order of issue, depend on the size alone: the ranks' collectives match whatever the calls in
// between.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"

namespace pkmesh {

class GradientBuckets {
 public:
  // `gradients` (P) must live as long as this object. bucket_bytes >= 4. In a world of one nothing is sent.
  GradientBuckets(Communicator& communicator, std::span<float> gradients, int64_t bucket_bytes);

  // Gradients at `offset` (0..P) and after are final; all ranks call this alike. Never takes anything back: a call
  // with a higher offset than before is nothing.
  void ready_down_to(int64_t offset);
  // All are final. Returns when every gradient is the sum over ranks, ready for the next step.
  void finish();

  int64_t bucket_count() const { return buckets_; }
  int64_t issued() const { return static_cast<int64_t>(pending_.size()); }  // of this step

 private:
  int64_t begin_of(int64_t bucket) const;  // bucket 0 is the last of the span

  Communicator& communicator_;
  std::span<float> gradients_;
  int64_t bucket_size_;  // elements
  int64_t buckets_;
  std::vector<Pending> pending_;
};

}  // namespace pkmesh
