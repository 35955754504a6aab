// SPDX-License-Identifier: Apache-2.0
// A fiber is a thread of a kernel: it has a stack of its own and runs only while the host thread that called resume()
// waits for it. Fibers run nothing at the same time, and leave only where they say so.
//
// The sanitizers are told. To AddressSanitizer a fiber is another stack. To ThreadSanitizer it is another thread, and
// being resumed orders nothing: what one fiber writes and another reads without a barrier between them is a race.
#pragma once

#include <cstddef>

namespace emulation {

class Fiber {
 public:
  // body(argument) must not return; it leaves.
  Fiber(void (*body)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void resume();  // goes on where it left, until it leaves
  void leave();   // called by the fiber itself

 private:
  static void begin(Fiber* fiber);

  void (*body_)(void*);
  void* argument_;
  std::byte* stack_;
  void* place_;              // its stack pointer while it does not run
  void* resumer_ = nullptr;  // that of who waits for it
  // What the sanitizers want to know of either side.
  void* fake_stack_ = nullptr;
  const void* resumer_stack_ = nullptr;
  size_t resumer_stack_bytes_ = 0;
  void* as_thread_ = nullptr;
  void* resumer_as_thread_ = nullptr;
};

// What happened before `released(place)` on one fiber, or on the host, is seen by another after its `acquired(place)`.
// Said to ThreadSanitizer, if that listens.
void released(void* place);
void acquired(void* place);

// To the end of the scope ThreadSanitizer does not look at what the C library does for us.
class Unwatched {
 public:
  Unwatched();
  ~Unwatched();
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
};

}  // namespace emulation
