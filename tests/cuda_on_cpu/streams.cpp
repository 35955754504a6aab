// SPDX-License-Identifier: Apache-2.0
// A stream does nothing until it must: until the host waits for it, or memory is freed, or a stream that is waited for
// waits for one of its events. So what the host reads too early, or changes too early, is wrong.
//
// A thread that has set no device must not call what would give it device 0, and a context there: it ends the program.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "tests/cuda_on_cpu/device_memory.h"
#include "tests/cuda_on_cpu/strict.h"

struct CUstream_st {
  std::deque<std::function<void()>> items;
  uint64_t done = 0;
  uint64_t queued() const { return done + items.size(); }
  void run_to(uint64_t place) {
    while (done < place) {
      const auto item = std::move(items.front());
      items.pop_front();
      ++done;
      item();
    }
  }
};

struct CUevent_st {
  cudaStream_t stream = nullptr;  // may be gone: then all of it has run
  uint64_t place = 0;
  std::shared_ptr<std::chrono::steady_clock::time_point> moment;  // null: never recorded
  bool timed = false;
};

namespace {

// Ranks are threads here: one at a time drives the device.
std::recursive_mutex mutex;
CUstream_st default_stream;
std::vector<cudaStream_t> streams = {&default_stream};
std::map<const std::byte*, std::unique_ptr<emulation::FencedMemory>> device_memory;  // by where it begins
thread_local cudaError_t last_error = cudaSuccess;
thread_local size_t shared_asked = 0;  // for the next launch
thread_local cudaError_t planned_error = cudaSuccess;
thread_local bool has_device = false;  // this thread, by cudaSetDevice()

void need_device(const char* call = __builtin_FUNCTION()) {
  if (has_device) return;
  std::fprintf(stderr, "emulated device: %s() by a thread that has set no device: a context on device 0\n", call);
  std::abort();
}

CUstream_st& of(cudaStream_t stream) {
  return stream == nullptr ? default_stream : *stream;
}

bool lives(cudaStream_t stream) {
  return std::ranges::find(streams, stream) != streams.end();
}

void run_everything() {
  for (size_t i = 0; i < streams.size(); ++i) streams[i]->run_to(streams[i]->queued());
}

void reach(cudaStream_t stream, uint64_t place) {
  if (lives(stream)) stream->run_to(std::max(place, stream->done));
}

std::byte* new_memory(size_t bytes) {
  auto fence = std::make_unique<emulation::FencedMemory>(bytes);
  fence->resize(bytes);
  std::byte* const begin = fence->begin();
  device_memory[begin] = std::move(fence);
  return begin;
}

cudaError_t fail(cudaError_t error) {
  return last_error = error;
}

bool fails_as_planned() {
  if (planned_error == cudaSuccess) return false;
  fail(std::exchange(planned_error, cudaSuccess));
  return true;
}

}  // namespace

int emulation::driver_version = CUDART_VERSION;
size_t emulation::shared_most = kSharedMost;

void emulation::fail_next(cudaError_t error) {
  planned_error = error;
}

void emulation::enqueue(cudaStream_t stream, std::function<void()> work) {
  const std::lock_guard lock(mutex);
  of(stream).items.push_back(std::move(work));
}

bool emulation::accept(const Shape& shape) {
  need_device("kernel<<<>>>");
  const size_t lent = std::max(kSharedUnasked, std::exchange(shared_asked, 0));
  const uint64_t threads = uint64_t{shape.block.x} * shape.block.y * shape.block.z;
  const bool accepted = threads >= 1 && threads <= 1024 && shape.block.z <= 64 && shape.grid.x >= 1 &&
                        shape.grid.x <= 0x7FFFFFFFU && shape.grid.y >= 1 && shape.grid.y <= 65535 &&
                        shape.grid.z >= 1 && shape.grid.z <= 65535 && shape.shared <= lent;
  if (!accepted) fail(cudaErrorInvalidConfiguration);
  return accepted;
}

std::shared_ptr<std::byte> emulation::fenced(size_t bytes) {
  const std::lock_guard lock(mutex);
  std::byte* const memory = new_memory(bytes);
  std::memset(memory, 0xFF, bytes);
  return {memory, [](std::byte* p) {
            const std::lock_guard lock_again(mutex);
            device_memory.erase(p);
          }};
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    default:
      return "cudaErrorUnknown";
  }
}
const char* cudaGetErrorString(cudaError_t) {
  return "as the emulation has it";
}
cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = emulation::driver_version;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  if (fails_as_planned()) return last_error;
  *count = emulation::kDevices;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
  if (index < 0 || index >= emulation::kDevices) return fail(cudaErrorUnknown);
  has_device = true;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index) {
  properties->uuid = {{'G', 'P', 'U', static_cast<char>(index)}};
  properties->totalGlobalMem = size_t{16} << 30;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9
           : attribute == cudaDevAttrMultiProcessorCount  ? 132
                                                          : static_cast<int>(emulation::shared_most);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  need_device();
  *total = size_t{16} << 30;
  *free = *total / 2;
  return cudaSuccess;
}
cudaError_t emulation::ask_for_shared(int bytes) {
  need_device();
  if (static_cast<size_t>(bytes) > shared_most) return fail(cudaErrorInvalidValue);
  shared_asked = static_cast<size_t>(bytes);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  need_device();
  if (fails_as_planned()) return last_error;
  const std::lock_guard lock(mutex);
  *memory = new_memory(bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  need_device();
  const std::lock_guard lock(mutex);
  run_everything();  // as CUDA does
  if (memory != nullptr && device_memory.erase(static_cast<std::byte*>(memory)) != 1) return fail(cudaErrorUnknown);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  need_device();
  if (fails_as_planned()) return last_error;
  *memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  return *memory == nullptr ? fail(cudaErrorUnknown) : cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  need_device();
  const std::lock_guard lock(mutex);
  run_everything();
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory) {
  need_device();
  if (fails_as_planned()) return last_error;
  const std::lock_guard lock(mutex);
  const auto* const address = static_cast<const std::byte*>(memory);
  auto next = device_memory.upper_bound(address);
  attributes->type = cudaMemoryTypeUnregistered;
  if (next != device_memory.begin() && (--next, address <= next->first + next->second->bytes()))
    attributes->type = cudaMemoryTypeDevice;
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  need_device();
  emulation::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  need_device();
  emulation::enqueue(stream, [=] { std::memset(memory, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  return cudaMemsetAsync(memory, value, bytes, nullptr);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  need_device();
  const std::lock_guard lock(mutex);
  *stream = streams.emplace_back(new CUstream_st);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  need_device();
  const std::lock_guard lock(mutex);
  stream->run_to(stream->queued());
  std::erase(streams, stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  need_device();
  const std::lock_guard lock(mutex);
  of(stream).run_to(of(stream).queued());
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  need_device();
  *event = new CUevent_st;
  (*event)->timed = flags != cudaEventDisableTiming;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  need_device();
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  need_device();
  const std::lock_guard lock(mutex);
  event->moment = std::make_shared<std::chrono::steady_clock::time_point>();
  emulation::enqueue(stream, [moment = event->moment] { *moment = std::chrono::steady_clock::now(); });
  event->stream = &of(stream);
  event->place = of(stream).queued();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  need_device();
  const std::lock_guard lock(mutex);
  if (event->moment != nullptr) reach(event->stream, event->place);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  need_device();
  if (fails_as_planned()) return last_error;
  const std::lock_guard lock(mutex);
  const bool reached = event->moment == nullptr || !lives(event->stream) || event->stream->done >= event->place;
  return reached ? cudaSuccess : fail(cudaErrorNotReady);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  need_device();
  const std::lock_guard lock(mutex);
  if (event->moment != nullptr)
    emulation::enqueue(stream, [on = event->stream, place = event->place] { reach(on, place); });
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  need_device();
  if (!from->timed || !to->timed) return fail(cudaErrorInvalidValue);
  *milliseconds = std::chrono::duration<float, std::milli>(*to->moment - *from->moment).count();
  return cudaSuccess;
}
