// SPDX-License-Identifier: Apache-2.0
// A GPU for the communicators' tests where there is none. (tests/emulated_device/ has one that runs all ops, as late as
// it may, on the host's own thread; collectives that wait for other ranks need one that goes on by itself.)
//
//   Device memory   has addresses that are no addresses: a host that touches it crashes.
//   A stream        is a thread that does its work late: what forgets to wait reads what is not there yet, and
//                   ThreadSanitizer says so.
#pragma once

#include <functional>

namespace pkmesh {

constexpr int kMultiprocessors = 20;  // of a small GPU

void emulate_devices(int count);  // 1 unless told otherwise
// As after a kernel's fault: from now on whoever asks about an event or waits for a stream gets an error.
void let_device_fail(bool fail);

// Queues a task on the stream of this Stream::native().
void on_emulated_stream(void* native, std::function<void()> task);

// Where the host can touch this memory, be it the device's or not. For tasks on a stream.
void* behind(const void* memory);

}  // namespace pkmesh
