// SPDX-License-Identifier: Apache-2.0
// CUDA as far as our kernels use it, on the CPU: blocks run one after the other, a block's threads take turns as fibers
// that yield where they wait for each other. Which thread goes first changes from launch to launch, so that a missing
// barrier shows: tests run everything twice and want the same bits. Memory is the host's. One host thread only.
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
#include <functional>

// --- the language ---

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
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

using cudaStream_t = struct CUstream_st*;

namespace emulation {

// Of the thread that runs.
extern uint3 thread_index;
extern dim3 block_index, block_size, grid_size;

void* dynamic_shared();
void wait_for_block();
void wait_for_warp();
// What the lanes of this warp gave, 64 bits each, those that have ended aside; valid until the next call. `present`: a
// bit for each lane that gave something.
const uint64_t* exchange(uint64_t mine, unsigned& present);
int lane();

void launch(const std::function<void()>& thread, dim3 grid, dim3 block, size_t shared = 0,
            cudaStream_t stream = nullptr);

}  // namespace emulation

#define threadIdx (::emulation::thread_index)
#define blockIdx (::emulation::block_index)
#define blockDim (::emulation::block_size)
#define gridDim (::emulation::grid_size)

inline void __syncthreads() {
  emulation::wait_for_block();
}
inline void __syncwarp() {
  emulation::wait_for_warp();
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  unsigned present = 0;
  const uint64_t* all = emulation::exchange(bits, present);
  const int from = emulation::lane() ^ mask;
  if ((present >> from & 1) != 0) std::memcpy(&value, &all[from], sizeof(T));
  return value;
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  unsigned present = 0;
  const uint64_t* all = emulation::exchange(vote ? 1 : 0, present);
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i)
    if ((present >> i & 1) != 0 && all[i] != 0) votes |= 1U << i;
  return votes;
}
inline unsigned __match_any_sync(unsigned, int value) {
  unsigned present = 0;
  const uint64_t mine = static_cast<uint32_t>(value);
  const uint64_t* all = emulation::exchange(mine, present);
  unsigned same = 0;
  for (int i = 0; i < 32; ++i)
    if ((present >> i & 1) != 0 && all[i] == mine) same |= 1U << i;
  return same;
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
[[noreturn]] void __trap();

// --- the run time ---

enum cudaError_t { cudaSuccess = 0, cudaErrorUnknown = 999 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaPointerAttributes {
  cudaMemoryType type;
};
using cudaEvent_t = struct CUevent_st*;
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaHostAllocPortable = 1;

inline const char* cudaGetErrorName(cudaError_t) {
  return "cudaError";
}
inline const char* cudaGetErrorString(cudaError_t) {
  return "an error of the emulation";
}
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int index) {
  return index == 0 ? cudaSuccess : cudaErrorUnknown;
}
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 9;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory);
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  return cudaMemsetAsync(memory, value, bytes, nullptr);
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = reinterpret_cast<cudaStream_t>(new char);
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete reinterpret_cast<char*>(stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to);
inline cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
