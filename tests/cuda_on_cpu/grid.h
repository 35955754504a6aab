// SPDX-License-Identifier: Apache-2.0
// How a kernel runs without a GPU. Blocks run one after the other; the threads of a block are fibers that take turns
// and leave where they wait for each other. Whatever a GPU may choose is chosen anew for each launch: the order of
// blocks and of threads, forwards, backwards or at random, and how far one warp runs ahead of the next. So a missing
// barrier shows as a wrong result in some launch (and under ThreadSanitizer as a race in any).
//
// Shared memory begins as NaNs in each block, and ends where an access faults.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = struct CUstream_st*;

namespace emulation {

// Of the thread that runs.
extern uint3 thread_index;
extern dim3 block_index, block_size, grid_size;

constexpr int kWarp = 32;
constexpr size_t kSharedUnasked = size_t{48} << 10;  // that every device lends
constexpr size_t kSharedMost = size_t{96} << 10;     // Volta's, the least of all

// Where a thread waits: all that wait together must do so at the same place.
struct Where {
  const char* what;
  int line;
  bool operator==(const Where&) const = default;
};

void wait_for_block(Where where);
void wait_for_warp(Where where);
int lane();
// The lanes of this warp, those that have ended aside, each give something. Nothing else that a lane wrote before is
// thereby seen by others: that is what __syncwarp() is for.
uint64_t shuffle_xor(Where where, unsigned lanes, uint64_t mine, int mask);             // what lane ^ mask gave
unsigned lanes_that_gave(Where where, unsigned lanes, uint64_t mine, uint64_t wanted);  // a bit for each

class FencedMemory;

// A kernel's `__shared__` array, and the begin of its `extern __shared__` one.
struct SharedArray {
  FencedMemory* memory[2] = {nullptr, nullptr};  // for either set (grid.cpp), to the end of the program
  uint64_t block[2] = {0, 0};                    // the last one that has used it
};
void* shared_array(SharedArray& array, size_t bytes);
void* dynamic_shared();

// The block's size is within the kernel's __launch_bounds__.
void check_bounds(int most_threads, int = 0);
[[noreturn]] void die(const char* what);

struct Shape {
  Shape(dim3 grid_, dim3 block_, size_t shared_ = 0, cudaStream_t stream_ = nullptr)
      : grid(grid_), block(block_), shared(shared_), stream(stream_) {}
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
bool accept(const Shape& shape);  // or an error for cudaGetLastError()
void run_grid(const Shape& shape, const std::function<void()>& thread);
void enqueue(cudaStream_t stream, std::function<void()> work);

// kernel<<<shape>>>(arguments...)
template <class Kernel, class... Arguments>
void launch(const Shape& shape, Kernel kernel, Arguments... arguments) {
  if (accept(shape)) enqueue(shape.stream, [=] { run_grid(shape, [&] { kernel(arguments...); }); });
}

}  // namespace emulation
