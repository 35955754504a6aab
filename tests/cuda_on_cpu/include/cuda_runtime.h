// SPDX-License-Identifier: Apache-2.0
// CUDA as far as our kernels use it, for the host's compiler (../grid.h says how kernels run). nvcc includes its header
// by itself, so CMake puts this one before every translated source.
//
// It shows that a kernel computes what it should; not that it is fast, nor what a GPU's weaker order of memory does to
// it.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "tests/cuda_on_cpu/grid.h"

// --- the language ---

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)  // translate.py puts a check into the kernel

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) ushort4 {
  unsigned short x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
inline ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z, unsigned short w) {
  return {x, y, z, w};
}
using std::max;
using std::min;

#define threadIdx (::emulation::thread_index)
#define blockIdx (::emulation::block_index)
#define blockDim (::emulation::block_size)
#define gridDim (::emulation::grid_size)

inline void __syncthreads(int line = __builtin_LINE()) {
  emulation::wait_for_block({"__syncthreads", line});
}
inline void __syncwarp(int line = __builtin_LINE()) {
  emulation::wait_for_warp({"__syncwarp", line});
}
template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int mask, int line = __builtin_LINE()) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = emulation::shuffle_xor({"__shfl_xor_sync", line}, lanes, bits, mask);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
inline unsigned __ballot_sync(unsigned lanes, bool vote, int line = __builtin_LINE()) {
  return emulation::lanes_that_gave({"__ballot_sync", line}, lanes, vote ? 1 : 0, 1);
}
inline unsigned __match_any_sync(unsigned lanes, int value, int line = __builtin_LINE()) {
  const uint64_t mine = static_cast<uint32_t>(value);
  return emulation::lanes_that_gave({"__match_any_sync", line}, lanes, mine, mine);
}
inline unsigned atomicOr(unsigned* place, unsigned bits) {
  return __atomic_fetch_or(place, bits, __ATOMIC_RELAXED);
}
inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline float normcdff(float x) {
  return static_cast<float>(0.5 * erfc(-static_cast<double>(x) * M_SQRT1_2));
}
[[noreturn]] inline void __trap() {
  emulation::die("it trapped");
}

// --- the run time ---

namespace emulation {
constexpr int kDevices = 8;
}

#define CUDART_VERSION 13000

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorUnknown = 999
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount
};
struct cudaPointerAttributes {
  cudaMemoryType type;
};
using cudaEvent_t = struct CUevent_st*;
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaHostAllocPortable = 1;
constexpr unsigned cudaEventDefault = 0;
constexpr unsigned cudaEventDisableTiming = 2;

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int index);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
struct cudaUUID_t {
  char bytes[16];
};
struct cudaDeviceProp {
  cudaUUID_t uuid;
  size_t totalGlobalMem;
};
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);

cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemset(void* memory, int value, size_t bytes);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to);

namespace emulation {
cudaError_t ask_for_shared(int bytes);  // for the next launch of this host thread
// This host thread's next call that asks for memory, or about devices, an address or an event, fails so.
void fail_next(cudaError_t error);
extern int driver_version;  // 0: there is no driver
extern size_t shared_most;  // bytes that a block may ask for
}  // namespace emulation
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return emulation::ask_for_shared(bytes);
}
