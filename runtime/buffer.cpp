// SPDX-License-Identifier: Apache-2.0
#include "runtime/buffer.h"

namespace pkmesh {
namespace {
constexpr int64_t kAlignment = 64;
constexpr int64_t kFirstChunk = int64_t{4} << 20;
}  // namespace

Scratch::Scratch() = default;
Scratch::~Scratch() = default;

std::byte* Scratch::take_bytes(int64_t bytes) {
  if (memory_.count() < bytes) {
    const int64_t more = std::max(bytes, 2 * memory_.count());  // what differs from step to step stops growing soon
    memory_ = {};                                               // first, so that both are never held
    memory_ = Buffer<std::byte>({}, more);
  }
  return memory_.data();
}

void* Arena::take_bytes(int64_t bytes) {
  const int64_t rounded = (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  while (current_ < chunks_.size() && used_ + rounded > chunks_[current_].count()) {
    used_ = 0;
    ++current_;
  }
  if (current_ == chunks_.size()) {
    // Doubling costs the host addresses only, a GPU the memory itself.
    const int64_t more = device_.kind == DeviceKind::kCpu ? capacity() : capacity() / 4;
    chunks_.emplace_back(device_, std::max({rounded, kFirstChunk, more}), kind_);
    ++growths_;
  }
  std::byte* memory = chunks_[current_].data() + used_;
  used_ += rounded;
  taken_ += rounded;
  peak_ = std::max(peak_, taken_);
  return memory;
}

void Arena::release(Mark mark) {
  PKM_CHECK(mark.chunk <= current_, "arena marks must be released in reverse order");
  current_ = mark.chunk;
  used_ = mark.used;
  taken_ = mark.taken;
}

void Arena::reset() {
  if (chunks_.size() > 1) {
    chunks_.clear();
    // One chunk, at whose end nothing is left over, holds the same step, and one that takes a little more: what other
    // ranks read here differs from step to step, and each record would cost all of the memory's pages anew. On the host
    // more costs addresses only, until it is used.
    chunks_.emplace_back(device_, peak_ + peak_ / (device_.kind == DeviceKind::kCpu ? 8 : 32), kind_);
    ++growths_;
  }
  current_ = 0;
  used_ = 0;
  taken_ = 0;
}

int64_t Arena::capacity() const {
  int64_t total = 0;
  for (const auto& chunk : chunks_) total += chunk.count();
  return total;
}

}  // namespace pkmesh
