// SPDX-License-Identifier: Apache-2.0
// The machine: a Device computes, a Stream orders its work, an Event marks a place in that order.
// On the CPU a stream is the calling thread: work is done when the call returns, and events only keep time.
// This module knows no ranks and no models.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>

#include "runtime/range.h"

namespace pkmesh {

enum class DeviceKind { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

std::string to_string(Device device);  // "cpu", "cuda:1"

// True if this program was built with kernels for the kind. (Whether one is plugged in is device_count's answer.)
bool compiled_with(DeviceKind kind);
int device_count(DeviceKind kind);
// Bytes of memory that a GPU has, and that programs hold of it; the host's memory is the system's to tell
// (runtime/process_memory.h).
int64_t total_memory(Device gpu);
int64_t used_memory(Device gpu);
bool has_bf16(Device gpu);  // whether it multiplies bf16
// Of the GPU itself, whatever number a process has for it. No two have the same.
using GpuIdentity = std::array<std::byte, 16>;
GpuIdentity identity(Device gpu);
int multiprocessors(Device gpu);
// What cuBLAS has on each stream that multiplies: it recommends so much for Hopper; older devices need less.
constexpr int64_t kBlasWorkspaceBytes = int64_t{32} << 20;

// How matrix products treat their fp32 operands: as they are, or rounded to 16 bits. They add up in fp32.
enum class Math { kFp32, kBf16, kFp16 };

// In-order queue of work on one device. Move-only; the device's work is complete after synchronize().
class Stream {
 public:
  explicit Stream(Device device = {});
  Stream(Stream&&) noexcept = default;
  Device device() const { return device_; }
  // What gemm does on this stream; ops that need fp32 say so (MathScope).
  Math math() const { return math_; }
  void set_math(Math math) { math_ = math; }
  void* native() const { return native_.get(); }  // cudaStream_t, or null on the CPU
  void synchronize();
  // What kernels keep for as long as the stream lives: runtime/cuda_stream.h on a GPU, oneDNN's products on the CPU
  // (layers/gemm_onednn.h). Null until the first of them asks for it.
  std::shared_ptr<void>& attachment() { return attachment_; }

 private:
  Device device_;
  Math math_ = Math::kFp32;
  std::shared_ptr<void> native_;
  std::shared_ptr<void> attachment_;  // dies before the native stream
};

// Matrix products on the stream are of this kind to the end of the scope.
class MathScope {
 public:
  MathScope(Stream& stream, Math math) : stream_(stream), former_(stream.math()) { stream.set_math(math); }
  ~MathScope() { stream_.set_math(former_); }
  MathScope(const MathScope&) = delete;
  MathScope& operator=(const MathScope&) = delete;

 private:
  Stream& stream_;
  Math former_;
};

// A place in a stream's order, for making another stream wait and, if it is to keep time, for timing: that costs the
// device more. On the CPU it is a moment in time. Move-only.
class Event {
 public:
  enum class Kind { kPlace, kTimed };
  explicit Event(Device device = {}, Kind kind = Kind::kPlace);
  Event(Event&&) noexcept = default;
  Event& operator=(Event&&) noexcept = default;
  void record(Stream& stream);  // the place is behind all work queued so far
  void hold(Stream& stream);    // work queued on `stream` from now on starts after the recorded place
  void synchronize();           // returns once the place is reached
  bool reached();               // whether it is; never waits
  // Milliseconds between two recorded places, both timed; waits for both.
  static double milliseconds(Event& from, Event& to);

 private:
  Device device_;
  Kind kind_;
  std::shared_ptr<void> native_;  // cudaEvent_t
  Clock::time_point moment_;
};

enum class MemoryKind {
  kDevice,  // the device's own; where that is a GPU, the host must not touch it
  kHost,    // the host's, pinned: copies between it and the device run beside other work. On the CPU the same
};

// Memory: zeroed, aligned to 64 bytes, on huge pages where the system lends them and size >= 2 MiB.
// Host pages are touched on first use, so an untouched table costs address space only.
// Throws UserError if the memory is not to be had, with the size that was asked for.
std::shared_ptr<std::byte> allocate(Device device, int64_t bytes, MemoryKind kind = MemoryKind::kDevice);

// True if the memory is a GPU's. Any address may be asked about.
bool on_device(const void* memory);

// What this thread has cost so far; a rank has one main thread. Tests hold a steady step to what it may cost.
struct RuntimeCounters {
  int64_t allocations = 0;       // of any kind
  int64_t synchronizations = 0;  // times the host waited for a GPU; on the CPU nobody waits
};
const RuntimeCounters& runtime_counters();

namespace detail {
void copy(Stream& stream, const void* from, int64_t from_bytes, void* to, int64_t to_bytes);
void clear(Stream& stream, void* memory, int64_t bytes);
}  // namespace detail

// to = from, in the stream's order; equal counts, no overlap. Either may be on the host or on the stream's device. Host
// memory must stay, and `from` unchanged, until the stream has got there (on the CPU: until the call returns).
template <class T>
requires std::is_trivially_copyable_v<T>
void copy(Stream& stream, std::span<const std::type_identity_t<T>> from, std::span<T> to) {
  detail::copy(stream, from.data(), static_cast<int64_t>(from.size_bytes()), to.data(),
               static_cast<int64_t>(to.size_bytes()));
}

// All bytes of memory on the stream's device become 0, in the stream's order.
template <class T>
requires std::is_trivially_copyable_v<T>
void clear(Stream& stream, std::span<T> memory) {
  detail::clear(stream, memory.data(), static_cast<int64_t>(memory.size_bytes()));
}

}  // namespace pkmesh
