// SPDX-License-Identifier: Apache-2.0
// A CUDA device without a GPU, to judge what the host does around the kernels. A program that links these files has
// eight of them, or PKMESH_EMULATED_DEVICES, from number PKMESH_EMULATED_FIRST of the machine on, of 4 GiB each. They
// compute what the CPU computes, so results must be equal bit for bit; they are as strict as a GPU may be, and stricter
// than any:
//
//   Device memory   can be touched by nobody but the ops and copies of the device's own streams: anything else is a
//                   SIGSEGV that says so, with a backtrace. An op that is given host memory is an error with its name.
//                   Freed memory is filled with NaNs.
//   A stream        does nothing until it must: until the host waits for it, or a stream that is waited for holds on
//                   one of its events. So a result that nobody waited for is not there, and host memory that was
//                   changed before its copy was waited for arrives changed. set_order() makes streams run ahead at
//                   random instead, each in its own order: another schedule that a GPU may choose. A host that polls an
//                   event often enough sees it reached.
//
// The number of rows that were touched is not the host's to know: ops that list rows are given as many as there may be,
// as on a GPU (layers/memory/row_gradients.h).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "runtime/device.h"

namespace pkmesh::emulated {

constexpr int kDevices = 8;

// seed 0: every stream as late as it may (the default). Else: after each call, streams of that device run ahead or not,
// by numbers from the seed. For streams of all threads; call it while none has work.
void set_order(uint64_t seed);

// Queues work on a stream of an emulated device: a Stream's, or a Stream::native().
void enqueue(Stream& stream, std::function<void()> work);
void enqueue(void* native, std::function<void()> work);

// What this thread has asked of all devices since the last call of take_costs().
struct Costs {  // by the innermost Range around each
  std::map<std::string, int64_t> waits;
  std::map<std::string, int64_t> allocations;  // of device memory and of pinned memory
};
Costs take_costs();

}  // namespace pkmesh::emulated
