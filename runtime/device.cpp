// SPDX-License-Identifier: Apache-2.0
#include "runtime/device.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "runtime/check.h"
#include "runtime/parallel.h"
#include "runtime/text.h"

namespace pkmesh {

// What a device has to offer besides kernels. The CUDA side is weak for the reason given in dispatch.h.
namespace cuda {
[[gnu::weak]] int device_count();
[[gnu::weak]] int64_t total_memory(int index);
[[gnu::weak]] int64_t used_memory(int index);
[[gnu::weak]] bool has_bf16(int index);
[[gnu::weak]] GpuIdentity identity(int index);
[[gnu::weak]] int multiprocessors(int index);
[[gnu::weak]] std::shared_ptr<void> make_stream(int index);
[[gnu::weak]] void synchronize(void* stream);
[[gnu::weak]] std::shared_ptr<void> make_event(int index, bool timed);
[[gnu::weak]] void record(void* event, void* stream);
[[gnu::weak]] void hold(void* event, void* stream);
[[gnu::weak]] void synchronize_event(void* event);
[[gnu::weak]] bool reached(int index, void* event);
[[gnu::weak]] double milliseconds(void* from, void* to);
[[gnu::weak]] std::shared_ptr<std::byte> allocate(int index, int64_t bytes);
[[gnu::weak]] std::shared_ptr<std::byte> allocate_host(int index, int64_t bytes);
[[gnu::weak]] bool on_device(const void* memory);
[[gnu::weak]] void copy(void* stream, const void* from, void* to, int64_t bytes);
[[gnu::weak]] void clear(void* stream, void* memory, int64_t bytes);
}  // namespace cuda

namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

thread_local RuntimeCounters t_counters;

std::shared_ptr<std::byte> allocate_plain(int64_t bytes) {
  if (bytes < kHugePage) {
    void* memory = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
    if (memory == nullptr) user_error("out of memory: {} bytes were not to be had", bytes);
    std::memset(memory, 0, static_cast<size_t>(bytes));
    return {static_cast<std::byte*>(memory), std::free};
  }
  // Fresh pages are zero already. Aligning to a huge page by hand wastes address space only, and what it wastes keeps a
  // table and its moments from lying exactly a power of two apart, where an update took twice as long (docs/tried.md).
  const auto length = static_cast<size_t>((bytes + kHugePage - 1) / kHugePage * kHugePage + kHugePage);
  void* base = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED)
    user_error("out of memory: {} were not to be had; free memory or raise its limit (ulimit -v), or use more ranks",
               bytes_text(static_cast<double>(bytes)));
  const auto address = reinterpret_cast<uintptr_t>(base);
  auto* aligned = static_cast<std::byte*>(base) + (kHugePage - address % kHugePage) % kHugePage;
  madvise(aligned, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // advice: the system may lend none
  return {aligned, [base, length](std::byte*) { munmap(base, length); }};
}

}  // namespace

std::string to_string(Device device) {
  return device.kind == DeviceKind::kCpu ? "cpu" : fmt::format("cuda:{}", device.index);
}

bool compiled_with(DeviceKind kind) {
  return kind == DeviceKind::kCpu || cuda::device_count != nullptr;
}

int device_count(DeviceKind kind) {
  if (kind == DeviceKind::kCpu) return 1;
  return compiled_with(kind) ? cuda::device_count() : 0;
}

int64_t total_memory(Device gpu) {
  PKM_CHECK(gpu.kind == DeviceKind::kCuda && cuda::total_memory != nullptr, "the memory of {}", to_string(gpu));
  return cuda::total_memory(gpu.index);
}

int64_t used_memory(Device gpu) {
  PKM_CHECK(gpu.kind == DeviceKind::kCuda && cuda::used_memory != nullptr, "the memory of {}", to_string(gpu));
  return cuda::used_memory(gpu.index);
}

bool has_bf16(Device gpu) {
  PKM_CHECK(gpu.kind == DeviceKind::kCuda && cuda::has_bf16 != nullptr, "{} is no GPU", to_string(gpu));
  return cuda::has_bf16(gpu.index);
}

GpuIdentity identity(Device gpu) {
  PKM_CHECK(gpu.kind == DeviceKind::kCuda && cuda::identity != nullptr, "{} is no GPU", to_string(gpu));
  return cuda::identity(gpu.index);
}

int multiprocessors(Device gpu) {
  PKM_CHECK(gpu.kind == DeviceKind::kCuda && cuda::multiprocessors != nullptr, "{} is no GPU", to_string(gpu));
  return cuda::multiprocessors(gpu.index);
}

Stream::Stream(Device device) : device_(device) {
  if (device.kind == DeviceKind::kCpu) return;
  if (!compiled_with(device.kind)) user_error("device CUDA: this program was built without it; build the cuda preset");
  if (device_count(device.kind) <= device.index)
    user_error("device {}: this machine has {} CUDA devices; set train.device: CPU, or use fewer ranks",
               to_string(device), device_count(device.kind));
  native_ = cuda::make_stream(device.index);
}

void Stream::synchronize() {
  if (native_ == nullptr) return;
  ++t_counters.synchronizations;
  cuda::synchronize(native_.get());
}

Event::Event(Device device, Kind kind) : device_(device), kind_(kind) {
  if (device.kind == DeviceKind::kCuda) native_ = cuda::make_event(device.index, kind == Kind::kTimed);
}

void Event::record(Stream& stream) {
  PKM_CHECK(stream.device() == device_, "an event of {} on a stream of {}", to_string(device_),
            to_string(stream.device()));
  if (native_ != nullptr) return cuda::record(native_.get(), stream.native());
  moment_ = Clock::now();
}

void Event::hold(Stream& stream) {
  if (native_ != nullptr) cuda::hold(native_.get(), stream.native());
}

void Event::synchronize() {
  if (native_ == nullptr) return;
  ++t_counters.synchronizations;
  cuda::synchronize_event(native_.get());
}

bool Event::reached() {
  return native_ == nullptr || cuda::reached(device_.index, native_.get());
}

double Event::milliseconds(Event& from, Event& to) {
  PKM_CHECK(from.kind_ == Kind::kTimed && to.kind_ == Kind::kTimed, "time between events that keep none");
  for (Event* const event : {&from, &to})
    if (!event->reached()) event->synchronize();
  if (from.native_ != nullptr) return cuda::milliseconds(from.native_.get(), to.native_.get());
  return std::chrono::duration<double, std::milli>(to.moment_ - from.moment_).count();
}

std::shared_ptr<std::byte> allocate(Device device, int64_t bytes, MemoryKind kind) {
  PKM_CHECK(bytes >= 0, "allocate {} bytes", bytes);
  ++t_counters.allocations;
  if (device.kind == DeviceKind::kCpu) return allocate_plain(bytes);
  return kind == MemoryKind::kHost ? cuda::allocate_host(device.index, bytes) : cuda::allocate(device.index, bytes);
}

bool on_device(const void* memory) {
  return cuda::on_device != nullptr && cuda::on_device(memory);
}

const RuntimeCounters& runtime_counters() {
  return t_counters;
}

void detail::copy(Stream& stream, const void* from, int64_t from_bytes, void* to, int64_t to_bytes) {
  PKM_CHECK(from_bytes == to_bytes, "copy of {} bytes to {}", from_bytes, to_bytes);
  if (from_bytes == 0) return;
  if (stream.native() != nullptr) return cuda::copy(stream.native(), from, to, from_bytes);
  parallel_for(0, from_bytes, int64_t{1} << 18, [=](int64_t begin, int64_t end) {
    std::memcpy(static_cast<std::byte*>(to) + begin, static_cast<const std::byte*>(from) + begin,
                static_cast<size_t>(end - begin));
  });
}

void detail::clear(Stream& stream, void* memory, int64_t bytes) {
  if (bytes == 0) return;
  if (stream.native() != nullptr) return cuda::clear(stream.native(), memory, bytes);
  auto* const begin = static_cast<std::byte*>(memory);
  parallel_for(0, bytes, int64_t{1} << 20,
               [=](int64_t from, int64_t to) { std::memset(begin + from, 0, static_cast<size_t>(to - from)); });
}

}  // namespace pkmesh
