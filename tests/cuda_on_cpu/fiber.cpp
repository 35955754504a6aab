// SPDX-License-Identifier: Apache-2.0
// Stacks are switched by a dozen instructions: the C library's swapcontext() would ask the system to save the signal
// mask each time, and its longjmp() is not understood by the sanitizers when it leads to another stack.
#include "tests/cuda_on_cpu/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#ifdef PKM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef PKM_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#endif

#ifndef __x86_64__
#error "switching stacks is written for x86-64; CMakeLists.txt leaves these tests out elsewhere"
#endif

// Leaves the stack we are on, with its pointer in *left, for the one that was left with `entered`. It jumps instead of
// returning, for the processor would guess that it returns to its caller.
extern "C" void pkm_switch_stacks(void** left, void* entered);
asm(R"(
.text
.type pkm_switch_stacks, @function
pkm_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size pkm_switch_stacks, .-pkm_switch_stacks
.type pkm_begin_stack, @function
pkm_begin_stack:
  movq %rbx, %rdi
  callq *%rbp
.size pkm_begin_stack, .-pkm_begin_stack
)");
extern "C" void pkm_begin_stack();

namespace emulation {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStack = size_t{256} << 10;

}  // namespace

Fiber::Fiber(void (*body)(void*), void* argument) : body_(body), argument_(argument) {
  void* const memory =
      mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) {  // whoever overflows it, crashes
    std::perror("a fiber's stack");
    std::abort();
  }
  stack_ = static_cast<std::byte*>(memory) + kPage;
  // Stacks begin at different places of a page: else all would want the same few lines of the cache.
  static size_t fibers = 0;
  std::byte* const first = stack_ + kStack - fibers++ * 5 % 64 * 64;
  // What pkm_switch_stacks() takes off: six registers, then where to go on. There the stack must be aligned to 16.
  auto** top = reinterpret_cast<void**>(first) - 9;
  top[4] = this;                                       // rbx
  top[5] = reinterpret_cast<void*>(&Fiber::begin);     // rbp
  top[6] = reinterpret_cast<void*>(&pkm_begin_stack);  // the return address
  place_ = top;
#ifdef PKM_TSAN
  as_thread_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#ifdef PKM_TSAN
  __tsan_destroy_fiber(as_thread_);
#endif
  munmap(stack_ - kPage, kPage + kStack);
}

void Fiber::begin(Fiber* fiber) {
#ifdef PKM_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &fiber->resumer_stack_, &fiber->resumer_stack_bytes_);
#endif
  fiber->body_(fiber->argument_);
  std::abort();
}

void Fiber::resume() {
#ifdef PKM_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_, kStack);
#endif
#ifdef PKM_TSAN
  resumer_as_thread_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(as_thread_, __tsan_switch_to_fiber_no_sync);
#endif
  pkm_switch_stacks(&resumer_, place_);
#ifdef PKM_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::leave() {
#ifdef PKM_ASAN
  __sanitizer_start_switch_fiber(&fake_stack_, resumer_stack_, resumer_stack_bytes_);
#endif
#ifdef PKM_TSAN
  __tsan_switch_to_fiber(resumer_as_thread_, __tsan_switch_to_fiber_no_sync);
#endif
  pkm_switch_stacks(&place_, resumer_);
#ifdef PKM_ASAN
  __sanitizer_finish_switch_fiber(fake_stack_, &resumer_stack_, &resumer_stack_bytes_);
#endif
}

void released([[maybe_unused]] void* place) {
#ifdef PKM_TSAN
  __tsan_release(place);
#endif
}

void acquired([[maybe_unused]] void* place) {
#ifdef PKM_TSAN
  __tsan_acquire(place);
#endif
}

Unwatched::Unwatched() {
#ifdef PKM_TSAN
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
}

Unwatched::~Unwatched() {
#ifdef PKM_TSAN
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
#endif
}

}  // namespace emulation
