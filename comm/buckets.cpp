// SPDX-License-Identifier: Apache-2.0
#include "comm/buckets.h"

#include <algorithm>

#include "runtime/check.h"

namespace pkmesh {
namespace {

// change = after - before, rounded; and `after` is what that makes of `before`.
void round_change(std::span<const float> before, std::span<float> after, bf16* change) {
  for (size_t i = 0; i < after.size(); ++i) {
    change[i] = bf16(after[i] - before[i]);
    after[i] = before[i] + static_cast<float>(change[i]);
  }
}

}  // namespace

GradientBuckets::GradientBuckets(Communicator& communicator, std::span<float> gradients, const Options& options)
    : communicator_(communicator),
      gradients_(gradients),
      wire_(communicator.shares_work() && communicator.hosts().count() == 1 ? Wire::kExact : options.wire),
      at_end_(communicator.all_share_memory()) {
  const int64_t bucket_size = options.bucket_bytes / int64_t{sizeof(float)};
  PKM_CHECK(bucket_size >= 1, "a bucket of {} bytes holds no gradient", options.bucket_bytes);
  PKM_CHECK(0 <= options.head && options.head <= size(), "a head of {} parameters of {}", options.head, size());
  if (communicator.size() > 1) {
    const int64_t head = at_end_ ? 0 : options.head;
    head_ = cut({0, head}, bucket_size);
    rest_ = cut({head, size()}, at_end_ ? std::max<int64_t>(size(), 1) : bucket_size);
  }
  mine_ = shares(communicator.rank());
  for (const Share& bucket : buckets_) {
    const auto first = std::ranges::lower_bound(mine_, bucket.begin, {}, &Share::begin) - mine_.begin();
    const auto end = std::ranges::lower_bound(mine_, bucket.end, {}, &Share::begin) - mine_.begin();
    numbers_.push_back({first, end});
  }
  if (communicator.shares_work() && wire_ == Wire::kBf16) changes_.resize(static_cast<size_t>(total(mine_)));
  sums_.reserve(buckets_.size());
  values_.resize(buckets_.size());
}

GradientBuckets::Region GradientBuckets::cut(Share range, int64_t bucket_size) {
  const int64_t first = bucket_count();
  for (int64_t end = range.end; end > range.begin; end -= bucket_size)
    buckets_.push_back({std::max(end - bucket_size, range.begin), end});
  std::reverse(buckets_.begin() + first, buckets_.end());
  return {range, first, bucket_count(), range.end};
}

std::vector<Share> GradientBuckets::shares(int rank) const {
  if (!communicator_.shares_work()) return {{0, size()}};
  std::vector<Share> shares;
  for (const Share& bucket : buckets_)
    for (const Share& share : communicator_.shares(bucket.count(), rank))
      if (share.count() > 0) shares.push_back({bucket.begin + share.begin, bucket.begin + share.end});
  return shares;
}

void GradientBuckets::ready(Share final) {
  PKM_CHECK(0 <= final.begin && final.begin <= final.end && final.end <= size(), "gradients [{}, {}) of {} are ready",
            final.begin, final.end, size());
  if (at_end_) return;
  for (Region* region : {&rest_, &head_}) {
    if (final.end < region->final_from) continue;
    region->final_from = std::min(region->final_from, final.begin);
    issue(*region);
  }
}

void GradientBuckets::issue(Region& region) {
  for (; region.next > region.first; --region.next) {
    const Share& bucket = buckets_[static_cast<size_t>(region.next - 1)];
    if (bucket.begin < region.final_from) return;
    sums_.push_back(communicator_.sum_shares_async(bucket.of(gradients_), wire_, Purpose::kDense));
  }
}

void GradientBuckets::finish() {
  for (Region* region : {&rest_, &head_}) {
    region->final_from = 0;
    issue(*region);
  }
  for (Pending& sum : sums_) sum.wait();
  sums_.clear();
  head_ = {head_.range, head_.first, rest_.first, head_.range.end};
  rest_ = {rest_.range, rest_.first, bucket_count(), rest_.range.end};
}

void GradientBuckets::change(std::span<float> values, const std::function<void(Share numbers)>& change) {
  PKM_CHECK(std::ssize(values) == size(), "{} values of {} gradients", values.size(), gradients_.size());
  wait_for({0, size()});
  if (!communicator_.shares_work()) return change({0, std::ssize(mine_)});
  for (int64_t bucket = rest_.first; bucket < bucket_count(); ++bucket) this->change(values, bucket, change);
  for (int64_t bucket = head_.first; bucket < rest_.first; ++bucket) this->change(values, bucket, change);
}

void GradientBuckets::change(std::span<float> values, size_t bucket, const std::function<void(Share numbers)>& change) {
  const std::span<float> whole = buckets_[bucket].of(values);
  if (wire_ == Wire::kExact) {
    change(numbers_[bucket]);
    values_[bucket] = communicator_.gather_shares_async(whole, Purpose::kParameters);
    return;
  }
  const auto shares = numbers_[bucket].of(std::span<const Share>(mine_));
  former_.clear();
  for (const Share& share : shares) former_.insert(former_.end(), share.of(values).begin(), share.of(values).end());
  change(numbers_[bucket]);
  // What others will add up from the rounded changes, this rank does at once.
  const auto before = total(std::span<const Share>(mine_).first(static_cast<size_t>(numbers_[bucket].begin)));
  const std::span<bf16> changes = Share{before, before + std::ssize(former_)}.of(std::span(changes_));
  int64_t done = 0;
  for (const Share& share : shares) {
    round_change(Share{done, done + share.count()}.of(std::span<const float>(former_)), share.of(values),
                 changes.data() + done);
    done += share.count();
  }
  values_[bucket] = communicator_.gather_changes_async(whole, changes, Purpose::kParameters);
}

void GradientBuckets::wait_for(Share values) {
  for (size_t bucket = 0; bucket < buckets_.size(); ++bucket)
    if (buckets_[bucket].part_of(values).count() > 0) values_[bucket].wait();
}

}  // namespace pkmesh
