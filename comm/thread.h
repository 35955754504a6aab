// SPDX-License-Identifier: Apache-2.0
// Ranks as threads of one process: for tests, which so run in milliseconds and under ThreadSanitizer.
//
// Each rank hands a copy of what it sends to the call's Meeting; whoever has found all copies there makes its own
// result from them. So no rank ever reads another's buffers, waits may come in any order, and sums run in rank order.
// Stricter than MPI on purpose: ranks that disagree on the collective, its purpose or its counts get an error that
// names both.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace pkmesh {

// What a thread rank gets from the collective it waits in when another rank ended; abort() throws it as well.
class JobAborted : public std::runtime_error {
 public:
  JobAborted(const std::string& what, int exit_code) : std::runtime_error(what), exit_code_(exit_code) {}
  int exit_code() const { return exit_code_; }

 private:
  int exit_code_;
};

struct ThreadOptions {
  std::vector<int> host_of_rank;                        // pretend hosts 0, 1, ...; empty: all on one
  Clock::duration timeout = std::chrono::seconds(120);  // a wait longer than this is an InternalError
};

// Runs body(world) on `ranks` threads, each with a communicator of its own. Returns when all have ended. The first
// exception of any rank ends the others promptly (JobAborted from the collective they wait in) and is thrown again
// here.
void run_ranks(int ranks, const std::function<void(Communicator& world)>& body, const ThreadOptions& options = {});

}  // namespace pkmesh
