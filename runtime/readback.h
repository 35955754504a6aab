// SPDX-License-Identifier: Apache-2.0
// What the host needs to know of a device's memory. On the CPU nothing is copied that need not be, and nobody waits.
#pragma once

#include <optional>
#include <vector>

#include "runtime/buffer.h"

namespace pkmesh {

// A few numbers that the host waits for late. They are copied on a stream of their own: work that is queued between
// start() and wait() runs meanwhile and need not be finished.
template <class T>
class Readback {
 public:
  // `from` lies on the stream's device and stays as it is until wait() is over.
  void start(Stream& stream, std::span<const T> from) {
    if (!side_ || !(side_->device() == stream.device())) {
      side_.emplace(stream.device());
      computed_ = Event(stream.device());
      copied_ = Event(stream.device());
    }
    if (values_.count() < std::ssize(from)) values_ = Buffer<T>(stream.device(), std::ssize(from), MemoryKind::kHost);
    count_ = std::ssize(from);
    computed_.record(stream);
    computed_.hold(*side_);
    copy(*side_, from, values_.view().rows(0, count_).flat());
    copied_.record(*side_);
  }
  // The values, until the next start().
  std::span<const T> wait() {
    copied_.synchronize();
    return values_.view().rows(0, count_).flat();
  }

 private:
  std::optional<Stream> side_;
  Event computed_;
  Event copied_;
  Buffer<T> values_;
  int64_t count_ = 0;
};

// A span of a device for the host to read: the memory itself on the CPU, else a copy, for which the constructor waits.
template <class T>
class OnHost {
 public:
  OnHost(Stream& stream, std::span<T> memory) : span_(memory) {
    if (!on_device(memory.data())) return;
    copy_.resize(memory.size());
    copy(stream, memory, std::span(copy_));
    stream.synchronize();
    span_ = copy_;
  }
  std::span<const std::remove_const_t<T>> span() const { return span_; }

 private:
  std::vector<std::remove_const_t<T>> copy_;
  std::span<const std::remove_const_t<T>> span_;
};

// fill(span) writes what becomes the memory's contents: in place on the CPU, else into a copy that is sent there.
template <class T, class Fill>
void write_from_host(Stream& stream, std::span<T> memory, const Fill& fill) {
  if (!on_device(memory.data())) return fill(memory);
  std::vector<T> values(memory.size());
  fill(std::span(values));
  copy(stream, values, memory);
  stream.synchronize();
}

}  // namespace pkmesh
