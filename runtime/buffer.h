// SPDX-License-Identifier: Apache-2.0
// Who owns memory: a Buffer for as long as it lives, an Arena until the end of the step.
// In a steady step nothing is allocated: the arena grows in the first step and is only reset afterwards.
#pragma once

#include <algorithm>
#include <vector>

#include "runtime/device.h"
#include "runtime/view.h"

namespace pkmesh {

// Move-only owner of `count` zeroed elements on a device.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device device, int64_t count, MemoryKind kind = MemoryKind::kDevice)
      : memory_(allocate(device, count * static_cast<int64_t>(sizeof(T)), kind)), count_(count) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&&) noexcept = default;
  Buffer& operator=(Buffer&&) noexcept = default;

  T* data() const { return reinterpret_cast<T*>(memory_.get()); }
  int64_t count() const { return count_; }
  Vector<T> view() const { return Vector<T>(data(), count_); }
  std::span<T> span() const { return view().flat(); }

 private:
  std::shared_ptr<std::byte> memory_;
  int64_t count_ = 0;
};

// Host memory that a kernel keeps from one call to the next, and that grows. None of it is inline, so that files that
// are compiled for one kind of CPU (docs/adding-an-op.md) have no part of a shared_ptr.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Room for `count` elements, at the beginning of a cache line. Contents are undefined; what was taken before is gone.
  template <class T>
  T* take(int64_t count) {
    return reinterpret_cast<T*>(take_bytes(count * static_cast<int64_t>(sizeof(T))));
  }

 private:
  std::byte* take_bytes(int64_t bytes);

  Buffer<std::byte> memory_;
};

// Bump allocator for what lives at most one step: activations, exchange buffers, scratch. Contents are undefined.
class Arena {
 public:
  explicit Arena(Device device = {}, MemoryKind kind = MemoryKind::kDevice) : device_(device), kind_(kind) {}

  template <class T, class... Sizes>
  View<T, sizeof...(Sizes)> take(Sizes... sizes) {
    View<T, sizeof...(Sizes)> view(static_cast<T*>(nullptr), sizes...);
    void* memory = take_bytes(view.count() * static_cast<int64_t>(sizeof(T)));
    return View<T, sizeof...(Sizes)>(static_cast<T*>(memory), sizes...);
  }

  // Everything taken after mark() is given back by release(mark); marks nest.
  struct Mark {
    size_t chunk;
    int64_t used;
    int64_t taken;
  };
  Mark mark() const { return {current_, used_, taken_}; }
  void release(Mark mark);

  // Gives back everything. If there are several chunks, they become one that holds a little more than was ever in use
  // at once.
  void reset();

  int64_t capacity() const;                     // bytes held
  int64_t peak() const { return peak_; }        // most bytes in use at once, without what chunks' ends left over
  int64_t growths() const { return growths_; }  // allocations so far: constant in a steady state

 private:
  void* take_bytes(int64_t bytes);

  Device device_;
  MemoryKind kind_;
  std::vector<Buffer<std::byte>> chunks_;
  size_t current_ = 0;  // chunk in use
  int64_t used_ = 0;    // bytes used of it
  int64_t taken_ = 0;   // bytes in use in all of them
  int64_t peak_ = 0;
  int64_t growths_ = 0;
};

// Gives back on leaving the scope what was taken from the arena inside it.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace pkmesh
