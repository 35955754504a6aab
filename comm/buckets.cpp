// SPDX-License-Identifier: Apache-2.0
#include "comm/buckets.h"

#include <algorithm>

#include "runtime/check.h"

namespace pkmesh {

GradientBuckets::GradientBuckets(Communicator& communicator, std::span<float> gradients, int64_t bucket_bytes,
                                 Wire wire)
    : communicator_(communicator),
      gradients_(gradients),
      bucket_size_(bucket_bytes / static_cast<int64_t>(sizeof(float))),
      wire_(wire),
      at_end_(communicator.all_share_memory()),
      mine_(share_of(std::ssize(gradients), communicator.sharing())) {
  PKM_CHECK(bucket_size_ >= 1, "a bucket of {} bytes holds no gradient", bucket_bytes);
  const auto size = static_cast<int64_t>(gradients.size());
  buckets_ = at_end_ || communicator.size() == 1 ? 0 : (size + bucket_size_ - 1) / bucket_size_;
  pending_.reserve(static_cast<size_t>(buckets_));
}

int64_t GradientBuckets::begin_of(int64_t bucket) const {
  return std::max<int64_t>(static_cast<int64_t>(gradients_.size()) - (bucket + 1) * bucket_size_, 0);
}

void GradientBuckets::ready_down_to(int64_t offset) {
  const auto size = static_cast<int64_t>(gradients_.size());
  PKM_CHECK(0 <= offset && offset <= size, "gradients ready down to {} of {}", offset, size);
  while (issued() < buckets_ && begin_of(issued()) >= offset) {
    const int64_t begin = begin_of(issued());
    const int64_t end = size - issued() * bucket_size_;
    const auto bucket = gradients_.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    pending_.push_back(communicator_.sum_async(bucket, wire_, Purpose::kDense));
  }
}

void GradientBuckets::finish() {
  ready_down_to(0);
  for (Pending& pending : pending_) pending.wait();
  pending_.clear();
  if (at_end_) communicator_.sum_shares(gradients_, Purpose::kDense);
}

void GradientBuckets::share_out(std::span<float> values) {
  PKM_CHECK(values.size() == gradients_.size(), "{} values of {} gradients", values.size(), gradients_.size());
  if (communicator_.sharing().ranks > 1) communicator_.gather_shares(values, Purpose::kDense);
}

}  // namespace pkmesh
