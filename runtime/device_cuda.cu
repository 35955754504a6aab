// SPDX-License-Identifier: Apache-2.0
// The CUDA side of device.cpp's seam: devices, streams and memory.
#include <cuda_runtime.h>

#include <atomic>
#include <cstring>
#include <memory>

#include "runtime/check.h"
#include "runtime/cuda_stream.h"
#include "runtime/device.h"
#include "runtime/log.h"

namespace pkmesh::cuda {
namespace {

constexpr int kNone = -1;
thread_local int t_current = kNone;  // this thread's device
std::atomic<int> g_used{kNone};      // the device that some thread last made its own

cudaError_t set_device(int index) {
  const cudaError_t status = cudaSetDevice(index);
  if (status == cudaSuccess) g_used = t_current = index;
  return status;
}

// Before what a thread may do to things of any device, but not without a device of its own: CUDA would take device 0
// and make a context there, hundreds of MiB of a GPU that is another rank's.
cudaError_t set_device_if_none(int index) {
  return t_current == kNone ? set_device(index) : cudaSuccess;
}

}  // namespace

void make_current(int index) {
  PKM_CUDA(set_device(index));
}

int device_count() {
  int count = 0;
  const cudaError_t answer = cudaGetDeviceCount(&count);
  if (answer == cudaSuccess) return count;
  // A machine without devices, or without a driver, has none: that is an answer. A driver that cannot be used is not:
  // there may be devices, and whoever left the choice to the program would wonder why it computes on the CPU.
  int driver = 0;  // stays 0 without one
  cudaDriverGetVersion(&driver);
  cudaGetLastError();
  static std::atomic<bool> said{false};
  if (answer != cudaErrorNoDevice && driver != 0 && !said.exchange(true))
    log_warning(
        "no GPU can be used: {}: {} (the driver knows CUDA {}.{}, this program is built for {}.{}); see nvidia-smi, "
        "update the driver, or build with an older toolkit",
        cudaGetErrorName(answer), cudaGetErrorString(answer), driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
        CUDART_VERSION % 1000 / 10);
  return 0;
}

int64_t total_memory(int index) {
  cudaDeviceProp properties{};
  PKM_CUDA(cudaGetDeviceProperties(&properties, index));
  return static_cast<int64_t>(properties.totalGlobalMem);
}

int64_t used_memory(int index) {
  make_current(index);
  size_t free = 0;
  size_t total = 0;
  PKM_CUDA(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(total - free);
}

bool has_bf16(int index) {
  int capability = 0;
  PKM_CUDA(cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, index));
  return capability >= 8;
}

GpuIdentity identity(int index) {
  cudaDeviceProp properties{};
  PKM_CUDA(cudaGetDeviceProperties(&properties, index));
  GpuIdentity identity;
  static_assert(sizeof(identity) == sizeof(properties.uuid));
  std::memcpy(identity.data(), &properties.uuid, sizeof(identity));
  return identity;
}

int multiprocessors(int index) {
  int count = 0;
  PKM_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index));
  return count;
}

std::shared_ptr<void> make_stream(int index) {
  make_current(index);
  cudaStream_t stream = nullptr;
  PKM_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return {stream, [index](void* handle) {
            set_device_if_none(index);
            cudaStreamDestroy(static_cast<cudaStream_t>(handle));
          }};
}

void synchronize(void* stream) {
  PKM_CUDA(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

std::shared_ptr<void> make_event(int index, bool timed) {
  make_current(index);
  cudaEvent_t event = nullptr;
  PKM_CUDA(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming));
  return {event, [index](void* handle) {
            set_device_if_none(index);
            cudaEventDestroy(static_cast<cudaEvent_t>(handle));
          }};
}

void record(void* event, void* stream) {
  PKM_CUDA(cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream)));
}

void hold(void* event, void* stream) {
  PKM_CUDA(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(event), 0));
}

void synchronize_event(void* event) {
  PKM_CUDA(cudaEventSynchronize(static_cast<cudaEvent_t>(event)));
}

bool reached(int index, void* event) {
  PKM_CUDA(set_device_if_none(index));
  const cudaError_t answer = cudaEventQuery(static_cast<cudaEvent_t>(event));
  if (answer == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  PKM_CUDA(answer);
  return true;
}

double milliseconds(void* from, void* to) {
  float elapsed = 0;
  PKM_CUDA(cudaEventElapsedTime(&elapsed, static_cast<cudaEvent_t>(from), static_cast<cudaEvent_t>(to)));
  return elapsed;
}

std::shared_ptr<std::byte> allocate(int index, int64_t bytes) {
  make_current(index);
  void* memory = nullptr;
  const cudaError_t answer = cudaMalloc(&memory, static_cast<size_t>(bytes > 0 ? bytes : 1));
  if (answer == cudaErrorMemoryAllocation) {  // any other error is a fault, perhaps of a kernel before
    cudaGetLastError();
    user_error("out of memory on cuda:{}: {:.2f} GiB were not to be had; use more ranks or a smaller table", index,
               static_cast<double>(bytes) / (1 << 30));
  }
  PKM_CUDA(answer);
  PKM_CUDA(cudaMemset(memory, 0, static_cast<size_t>(bytes)));
  PKM_CUDA(cudaStreamSynchronize(nullptr));  // our streams do not wait for the default one, which clears the memory
  return {static_cast<std::byte*>(memory), [index](std::byte* p) {
            set_device_if_none(index);
            cudaFree(p);
          }};
}

std::shared_ptr<std::byte> allocate_host(int index, int64_t bytes) {
  make_current(index);
  void* memory = nullptr;
  const cudaError_t answer = cudaHostAlloc(&memory, static_cast<size_t>(bytes > 0 ? bytes : 1), cudaHostAllocPortable);
  if (answer == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    user_error("out of memory: {:.2f} GiB of pinned host memory were not to be had; use a smaller batch",
               static_cast<double>(bytes) / (1 << 30));
  }
  PKM_CUDA(answer);
  std::memset(memory, 0, static_cast<size_t>(bytes));
  return {static_cast<std::byte*>(memory), [index](std::byte* p) {
            set_device_if_none(index);
            cudaFreeHost(p);
          }};
}

bool on_device(const void* memory) {
  const int used = g_used;
  if (used == kNone) return false;  // who has used no device has no memory of one
  PKM_CUDA(set_device_if_none(used));
  cudaPointerAttributes attributes{};
  const cudaError_t answer = cudaPointerGetAttributes(&attributes, memory);
  if (answer == cudaErrorInvalidValue) {  // CUDA does not know the address
    cudaGetLastError();
    return false;
  }
  PKM_CUDA(answer);
  return attributes.type == cudaMemoryTypeDevice;
}

void copy(void* stream, const void* from, void* to, int64_t bytes) {
  PKM_CUDA(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, static_cast<cudaStream_t>(stream)));
}

void clear(void* stream, void* memory, int64_t bytes) {
  PKM_CUDA(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)));
}

}  // namespace pkmesh::cuda
