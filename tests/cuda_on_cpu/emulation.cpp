// SPDX-License-Identifier: Apache-2.0
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include "runtime/bf16.h"
#include "runtime/fp16.h"

namespace emulation {

uint3 thread_index;
dim3 block_index, block_size, grid_size;

namespace {

constexpr size_t kStack = size_t{128} << 10;
constexpr int kWarp = 32;

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "emulated kernel, block (%u, %u, %u), thread %u: %s\n", block_index.x, block_index.y,
               block_index.z, thread_index.x, what);
  std::abort();
}

// Threads that wait for each other.
struct Group {
  int alive = 0;
  int arrived = 0;
  unsigned passed = 0;  // how often all have arrived
  void open_if_complete() {
    if (arrived < alive || arrived == 0) return;
    arrived = 0;
    ++passed;
  }
};

struct Warp {
  Group group;
  uint64_t given[kWarp];
  unsigned present = 0;
};

struct Fiber {
  Fiber();
  Fiber(const Fiber&) = delete;  // a context points into itself
  jmp_buf place;                 // where it goes on
  ucontext_t context;            // where it began
  bool begun = false;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStack);
  uint3 index{};
  int number = 0;  // within the block
  bool ended = true;
  uint64_t seen[kWarp];  // what the lanes gave in the last exchange
};

std::vector<std::unique_ptr<Fiber>> fibers;  // as many as the largest block so far; stacks are kept
std::vector<Warp> warps;
Group block;
Fiber* running = nullptr;
jmp_buf scheduler;
const std::function<void()>* body = nullptr;
struct alignas(128) Line {
  float values[32];
};
std::vector<Line> shared_memory;
int64_t launches = 0;
int64_t progress = 0;

Warp& warp() {
  return warps[static_cast<size_t>(running->number / kWarp)];
}

// Jumps, for swapcontext() would ask the kernel to save the signal mask each time.
void yield() {
  if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}

void resume(Fiber& fiber) {
  running = &fiber;
  thread_index = fiber.index;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.context);
}

void wait_for(Group& group) {
  const unsigned before = group.passed;
  ++group.arrived;
  group.open_if_complete();
  while (group.passed == before) yield();
  ++progress;
}

void fiber_main() {  // one thread after the other, of one block after the other
  while (true) {
    (*body)();
    running->ended = true;
    ++progress;
    --block.alive;
    block.open_if_complete();
    --warp().group.alive;
    warp().present &= ~(1U << (running->number % kWarp));
    warp().group.open_if_complete();
    yield();
  }
}

Fiber::Fiber() {
  getcontext(&context);
  context.uc_stack.ss_sp = stack.get();
  context.uc_stack.ss_size = kStack;
  makecontext(&context, fiber_main, 0);
}

void run_block(int threads, bool backwards) {
  block = {.alive = threads};
  warps.assign(static_cast<size_t>((threads + kWarp - 1) / kWarp), {});
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = *fibers[static_cast<size_t>(i)];
    const auto n = static_cast<unsigned>(i);
    fiber.index = {n % block_size.x, n / block_size.x % block_size.y, n / block_size.x / block_size.y};
    fiber.number = i;
    fiber.ended = false;
    Warp& warp = warps[static_cast<size_t>(i / kWarp)];
    ++warp.group.alive;
    warp.present |= 1U << (i % kWarp);
  }
  while (block.alive > 0) {
    const int64_t before = progress;
    for (int i = 0; i < threads; ++i) {
      Fiber& fiber = *fibers[static_cast<size_t>(backwards ? threads - 1 - i : i)];
      if (!fiber.ended) resume(fiber);
    }
    if (progress == before) die("all threads wait, not all for the same thing");
  }
}

}  // namespace

void* dynamic_shared() {
  return shared_memory.data();
}
void wait_for_block() {
  wait_for(block);
}
void wait_for_warp() {
  wait_for(warp().group);
}
int lane() {
  return running->number % kWarp;
}
const uint64_t* exchange(uint64_t mine, unsigned& present) {
  warp().given[lane()] = mine;
  wait_for_warp();
  present = warp().present;
  std::copy_n(warp().given, kWarp, running->seen);
  wait_for_warp();  // the next exchange overwrites what was given
  return running->seen;
}

void launch(const std::function<void()>& thread, dim3 grid, dim3 block_shape, size_t shared, cudaStream_t) {
  const auto threads = static_cast<int>(block_shape.x * block_shape.y * block_shape.z);
  if (threads < 1 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.y > 65535 || shared > (size_t{227} << 10))
    die("a launch that no GPU takes");
  while (fibers.size() < static_cast<size_t>(threads)) fibers.push_back(std::make_unique<Fiber>());
  if (shared_memory.size() * sizeof(Line) < shared) shared_memory.resize(shared / sizeof(Line) + 1);
  body = &thread;
  grid_size = grid;
  block_size = block_shape;
  const bool backwards = ++launches % 2 == 0;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t n = 0; n < blocks; ++n) {
    const uint64_t i = backwards ? blocks - 1 - n : n;
    block_index = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                   static_cast<unsigned>(i / grid.x / grid.y)};
    std::memset(shared_memory.data(), 0xFF, shared);  // NaN
    run_block(threads, backwards);
  }
}

}  // namespace emulation

void __trap() {
  emulation::die("it trapped");
}

namespace {
std::map<const char*, size_t> device_memory;  // begin, bytes
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory == nullptr) return cudaErrorUnknown;
  device_memory[static_cast<char*>(*memory)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  device_memory.erase(static_cast<char*>(memory));
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = std::malloc(bytes);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* memory) {
  const char* const address = static_cast<const char*>(memory);
  auto next = device_memory.upper_bound(address);
  attributes->type = cudaMemoryTypeUnregistered;
  if (next != device_memory.begin() && (--next, address < next->first + next->second))
    attributes->type = cudaMemoryTypeDevice;
  return cudaSuccess;
}

struct CUevent_st {
  std::chrono::steady_clock::time_point moment;
};
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->moment = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  *milliseconds = std::chrono::duration<float, std::milli>(to->moment - from->moment).count();
  return cudaSuccess;
}

namespace {

double element(const void* matrix, cudaDataType_t type, int64_t i) {
  if (type == CUDA_R_16F) return static_cast<float>(static_cast<const pkmesh::fp16*>(matrix)[i]);
  if (type == CUDA_R_16BF) return static_cast<float>(static_cast<const pkmesh::bf16*>(matrix)[i]);
  return static_cast<const float*>(matrix)[i];
}

}  // namespace

cublasStatus_t cublasGemmEx_64(cublasHandle_t, cublasOperation_t a_flips, cublasOperation_t b_flips, int64_t m,
                               int64_t n, int64_t k, const float* alpha, const void* a, cudaDataType_t a_type,
                               int64_t lda, const void* b, cudaDataType_t b_type, int64_t ldb, const float* beta,
                               void* c, cudaDataType_t, int64_t ldc, cublasComputeType_t, cublasGemmAlgo_t) {
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l)
        sum += element(a, a_type, a_flips == CUBLAS_OP_N ? i + l * lda : l + i * lda) *
               element(b, b_type, b_flips == CUBLAS_OP_N ? l + j * ldb : j + l * ldb);
      float& out = static_cast<float*>(c)[i + j * ldc];
      out = static_cast<float>(*alpha * sum + (*beta == 0 ? 0 : static_cast<double>(*beta) * out));
    }
  return CUBLAS_STATUS_SUCCESS;
}
