// SPDX-License-Identifier: Apache-2.0
#include "tests/cuda_on_cpu/device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef PKM_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace emulation {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 64;
constexpr auto kBehind = std::byte{0xA5};

size_t rounded_up(size_t bytes, size_t to) {
  return (bytes + to - 1) / to * to;
}

}  // namespace

FencedMemory::FencedMemory(size_t most) : most_(rounded_up(std::max<size_t>(most, 1), kPage)) {
  void* const memory =
      mmap(nullptr, most_ + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  end_ = static_cast<std::byte*>(memory) + most_;
  if (memory == MAP_FAILED || mprotect(end_, kPage, PROT_NONE) != 0) {
    std::perror("memory of an emulated device");
    std::abort();
  }
}

FencedMemory::~FencedMemory() {
  check_end();
#ifdef PKM_ASAN
  __asan_unpoison_memory_region(end_ - most_, most_);
#endif
  munmap(end_ - most_, most_ + kPage);
}

void FencedMemory::resize(size_t bytes) {
  check_end();
  bytes_ = bytes;
  rounded_ = rounded_up(bytes, kAlignment);
#ifdef PKM_ASAN
  __asan_poison_memory_region(end_ - most_, most_);
  __asan_unpoison_memory_region(begin(), bytes);
#else
  std::fill(begin() + bytes, end_, kBehind);
#endif
}

void FencedMemory::check_end() const {
#ifndef PKM_ASAN
  if (std::all_of(begin() + bytes_, end_, [](std::byte byte) { return byte == kBehind; })) return;
  std::fprintf(stderr, "emulated device: something was written behind the end of %zu bytes\n", bytes_);
  std::abort();
#endif
}

}  // namespace emulation
