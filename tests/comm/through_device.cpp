// SPDX-License-Identifier: Apache-2.0
#include "through_device.h"

#include <gtest/gtest.h>

#include "runtime/buffer.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

constexpr size_t kGuard = 64;
constexpr std::byte kPattern{0xA5};

// A host span's place on the device, followed by guards. Made, read and released in the order of the stream.
template <class Span>
class Twin {
 public:
  Twin(Stream& stream, Device device, Span host)
      : stream_(stream), host_(host), staged_(device, bytes(), MemoryKind::kHost), memory_(device, bytes()) {
    std::copy(host.begin(), host.end(), staged_.span().begin());
    std::fill(staged_.span().begin() + static_cast<ptrdiff_t>(host.size()), staged_.span().end(), kPattern);
    copy(stream_, staged_.span(), memory_.span());
  }
  std::span<std::byte> span() const { return memory_.span().first(host_.size()); }
  // The host's span becomes what the device has.
  void fetch() {
    copy(stream_, memory_.span(), staged_.span());
    stream_.synchronize();
    std::copy_n(staged_.span().begin(), host_.size(), host_.begin());
    for (const std::byte guard : staged_.span().subspan(host_.size())) EXPECT_EQ(guard, kPattern) << "behind the end";
  }

 private:
  int64_t bytes() const { return static_cast<int64_t>(host_.size() + kGuard); }
  Stream& stream_;
  Span host_;
  Buffer<std::byte> staged_, memory_;
};

using Source = Twin<std::span<const std::byte>>;
using Target = Twin<std::span<std::byte>>;

template <class T, class Byte>
auto typed(std::span<Byte> bytes) {
  using Element = std::conditional_t<std::is_const_v<Byte>, const T, T>;
  return std::span<Element>(reinterpret_cast<Element*>(bytes.data()), bytes.size() / sizeof(T));
}

template <class Body>
auto with_type(ElementType type, const Body& body) {
  switch (type) {
    case ElementType::kInt32:
      return body(int32_t{});
    case ElementType::kInt64:
      return body(int64_t{});
    case ElementType::kFloat:
      return body(float{});
    case ElementType::kDouble:
      return body(double{});
    case ElementType::kByte:
      break;
  }
  PKM_CHECK(false, "bytes cannot be reduced");
}

}  // namespace

ThroughDevice::ThroughDevice(std::shared_ptr<Communicator> tested, Device device)
    : Communicator(tested->rank(), tested->size(), tested->hosts()),
      device_(device),
      stream_(device),
      tested_(std::move(tested)),
      before_(tested_->ledger()) {
  tested_->use(stream_);
}

ThroughDevice::~ThroughDevice() {
  stop_watching();
  stream_.synchronize();
  if (std::uncaught_exceptions() > 0) return;
  const Ledger spent = tested_->ledger() - before_;
  for (int p = 0; p < kPurposes; ++p) {
    const auto purpose = static_cast<Purpose>(p);
    const LedgerEntry& mine = ledger()[purpose];
    const LedgerEntry& theirs = spent[purpose];
    EXPECT_EQ(theirs.calls, mine.calls) << to_string(purpose);
    EXPECT_EQ(theirs.bytes, mine.bytes) << to_string(purpose);
    EXPECT_NEAR(theirs.bus_bytes, mine.bus_bytes, 1e-6) << to_string(purpose);  // a difference of sums
    EXPECT_NEAR(theirs.crossed, mine.crossed, 1e-6) << to_string(purpose);
    EXPECT_GE(theirs.seconds, 0) << to_string(purpose);
  }
}

void ThroughDevice::abort(int exit_code) {
  tested_->abort(exit_code);
  std::terminate();  // not reached
}

void ThroughDevice::run_all_reduce(const Reduce& reduce) {
  Target data(stream_, device_, reduce.data);
  with_type(reduce.type, [&](auto zero) {
    tested_->all_reduce(typed<decltype(zero)>(data.span()), reduce.reduction, call().purpose);
  });
  data.fetch();
}

Pending ThroughDevice::start_all_reduce(const Reduce& reduce) {
  const auto data = std::make_shared<Target>(stream_, device_, reduce.data);
  const auto pending = std::make_shared<Pending>(with_type(reduce.type, [&](auto zero) {
    return tested_->all_reduce_async(typed<decltype(zero)>(data->span()), reduce.reduction, call().purpose);
  }));
  return Pending([data, pending] {
    pending->wait();
    data->fetch();
  });
}

void ThroughDevice::run_all_gather(std::span<const std::byte> in, std::span<std::byte> out) {
  const Source source(stream_, device_, in);
  Target target(stream_, device_, out);
  tested_->all_gather<std::byte>(source.span(), target.span(), call().purpose);
  target.fetch();
}

Pending ThroughDevice::start_all_to_all_v(const Blocks& blocks) {
  const auto source = std::make_shared<Source>(stream_, device_, blocks.in);
  const auto target = std::make_shared<Target>(stream_, device_, blocks.out);
  if (call().collective == Collective::kAllToAll) {
    tested_->all_to_all<std::byte>(source->span(), target->span(), call().purpose);
    target->fetch();
    return {};
  }
  std::vector<int64_t> in_counts(blocks.in_counts.begin(), blocks.in_counts.end());
  std::vector<int64_t> out_counts(blocks.out_counts.begin(), blocks.out_counts.end());
  for (auto* counts : {&in_counts, &out_counts})
    for (int64_t& count : *counts) count *= blocks.element_bytes;
  const auto pending = std::make_shared<Pending>(
      tested_->all_to_all_v_async<std::byte>(source->span(), in_counts, target->span(), out_counts, call().purpose));
  return Pending([source, target, pending] {
    pending->wait();
    target->fetch();
  });
}

void ThroughDevice::run_broadcast(std::span<std::byte> data, int root) {
  Target target(stream_, device_, data);
  tested_->broadcast(target.span(), root, call().purpose);
  target.fetch();
}

}  // namespace pkmesh
