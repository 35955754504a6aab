// SPDX-License-Identifier: Apache-2.0
#include "comm/buckets.h"

#include <algorithm>

#include "runtime/check.h"
#include "runtime/parallel.h"

namespace pkmesh {
namespace {

constexpr int64_t kGrain = 16384;

// change = after - before, rounded; and `after` is what that makes of `before`.
void round_change(std::span<const float> before, std::span<float> after, std::span<bf16> change) {
  parallel_for(0, std::ssize(after), kGrain, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      change[i] = bf16(after[i] - before[i]);
      after[i] = before[i] + static_cast<float>(change[i]);
    }
  });
}

}  // namespace

GradientBuckets::GradientBuckets(Communicator& communicator, std::span<float> gradients, const Options& options)
    : communicator_(communicator),
      gradients_(gradients),
      wire_(communicator.hosts().count() == 1 ? Wire::kExact : options.wire),
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
  int64_t elements = 0;
  int64_t number = 0;
  for (Bucket& bucket : buckets_) {
    bucket.mine_before = elements;
    bucket.numbers.begin = number;
    for (; number < std::ssize(mine_) && mine_[static_cast<size_t>(number)].begin < bucket.range.end; ++number)
      elements += mine_[static_cast<size_t>(number)].count();
    bucket.numbers.end = number;
  }
  sums_.reserve(buckets_.size());
  if (communicator.shares_work() && wire_ == Wire::kBf16) changes_.resize(static_cast<size_t>(elements));
}

GradientBuckets::Region GradientBuckets::cut(Share range, int64_t bucket_size) {
  const int64_t first = bucket_count();
  for (int64_t end = range.end; end > range.begin; end -= bucket_size)
    buckets_.push_back({{std::max(end - bucket_size, range.begin), end}, {}, 0, {}});
  std::reverse(buckets_.begin() + first, buckets_.end());
  return unissued({first, bucket_count(), 0, 0});
}

GradientBuckets::Region GradientBuckets::unissued(const Region& region) const {
  const bool empty = region.first == region.end;
  return {region.first, region.end, region.end,
          empty ? size() : buckets_[static_cast<size_t>(region.end - 1)].range.end};
}

std::vector<Share> GradientBuckets::shares(int rank) const {
  if (!communicator_.shares_work()) return {{0, size()}};
  std::vector<Share> shares;
  for (const Bucket& bucket : buckets_)
    for (const Share& share : communicator_.shares(bucket.range.count(), rank))
      if (share.count() > 0) shares.push_back({bucket.range.begin + share.begin, bucket.range.begin + share.end});
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
  for (; region.issued_from > region.first; --region.issued_from) {
    const Share& bucket = buckets_[static_cast<size_t>(region.issued_from - 1)].range;
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
  head_ = unissued(head_);
  rest_ = unissued(rest_);
}

void GradientBuckets::change(std::span<float> values, const std::function<void(Share numbers)>& change) {
  PKM_CHECK(std::ssize(values) == size(), "{} values of {} gradients", values.size(), gradients_.size());
  wait_for({0, size()});
  if (!communicator_.shares_work()) return change({0, std::ssize(mine_)});
  const std::span<Bucket> all = buckets_;
  for (Bucket& bucket : Share{rest_.first, rest_.end}.of(all)) share_out(values, bucket, change);
  for (Bucket& bucket : Share{head_.first, head_.end}.of(all)) share_out(values, bucket, change);
}

void GradientBuckets::share_out(std::span<float> values, Bucket& bucket,
                                const std::function<void(Share numbers)>& change) {
  const std::span<float> whole = bucket.range.of(values);
  if (wire_ == Wire::kExact) {
    change(bucket.numbers);
    bucket.values = communicator_.gather_shares_async(whole, Purpose::kParameters);
    return;
  }
  const auto shares = bucket.numbers.of(std::span<const Share>(mine_));
  former_.clear();
  for (const Share& share : shares) former_.insert(former_.end(), share.of(values).begin(), share.of(values).end());
  change(bucket.numbers);
  // What others will make of the rounded changes, this rank makes at once.
  const auto changes = Share{bucket.mine_before, bucket.mine_before + std::ssize(former_)}.of(std::span(changes_));
  int64_t done = 0;
  for (const Share& share : shares) {
    const Share part{done, done + share.count()};
    round_change(part.of(std::span<const float>(former_)), share.of(values), part.of(changes));
    done = part.end;
  }
  bucket.values = communicator_.gather_changes_async(whole, changes, Purpose::kParameters);
}

void GradientBuckets::wait_for(Share values) {
  for (Bucket& bucket : buckets_)
    if (bucket.range.part_of(values).count() > 0) bucket.values.wait();
}

}  // namespace pkmesh
