// SPDX-License-Identifier: Apache-2.0
// The CUDA side of device.cpp's seam: devices, streams and memory.
#include <cuda_runtime.h>

#include <cstring>
#include <memory>

#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace pkmesh::cuda {

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // a machine without a driver has no devices; that is an answer, not an error
    return 0;
  }
  return count;
}

int64_t total_memory(int index) {
  cudaDeviceProp properties{};
  PKM_CUDA(cudaGetDeviceProperties(&properties, index));
  return static_cast<int64_t>(properties.totalGlobalMem);
}

std::shared_ptr<void> make_stream(int index) {
  PKM_CUDA(cudaSetDevice(index));
  cudaStream_t stream = nullptr;
  PKM_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return {stream, [](void* handle) { cudaStreamDestroy(static_cast<cudaStream_t>(handle)); }};
}

void synchronize(void* stream) {
  PKM_CUDA(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

std::shared_ptr<void> make_event(int index) {
  PKM_CUDA(cudaSetDevice(index));
  cudaEvent_t event = nullptr;
  PKM_CUDA(cudaEventCreate(&event));
  return {event, [](void* handle) { cudaEventDestroy(static_cast<cudaEvent_t>(handle)); }};
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

bool reached(void* event) {
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
  PKM_CUDA(cudaSetDevice(index));
  void* memory = nullptr;
  if (cudaMalloc(&memory, static_cast<size_t>(bytes > 0 ? bytes : 1)) != cudaSuccess) {
    cudaGetLastError();
    user_error("out of memory on cuda:{}: {:.2f} GiB were not to be had; use more ranks or a smaller table", index,
               static_cast<double>(bytes) / (1 << 30));
  }
  PKM_CUDA(cudaMemset(memory, 0, static_cast<size_t>(bytes)));
  PKM_CUDA(cudaStreamSynchronize(nullptr));  // our streams do not wait for the default one, which clears the memory
  return {static_cast<std::byte*>(memory), [](std::byte* p) { cudaFree(p); }};
}

std::shared_ptr<std::byte> allocate_host(int index, int64_t bytes) {
  PKM_CUDA(cudaSetDevice(index));
  void* memory = nullptr;
  if (cudaHostAlloc(&memory, static_cast<size_t>(bytes > 0 ? bytes : 1), cudaHostAllocPortable) != cudaSuccess) {
    cudaGetLastError();
    user_error("out of memory: {:.2f} GiB of pinned host memory were not to be had; use a smaller batch",
               static_cast<double>(bytes) / (1 << 30));
  }
  std::memset(memory, 0, static_cast<size_t>(bytes));
  return {static_cast<std::byte*>(memory), [](std::byte* p) { cudaFreeHost(p); }};
}

bool on_device(const void* memory) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) {
    cudaGetLastError();  // no driver, no device memory
    return false;
  }
  return attributes.type == cudaMemoryTypeDevice;
}

void copy(void* stream, const void* from, void* to, int64_t bytes) {
  PKM_CUDA(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, static_cast<cudaStream_t>(stream)));
}

void clear(void* stream, void* memory, int64_t bytes) {
  PKM_CUDA(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)));
}

}  // namespace pkmesh::cuda
