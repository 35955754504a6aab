// SPDX-License-Identifier: Apache-2.0
// Ranks as processes, over MPI. Only the thread that made the session calls MPI (MPI_THREAD_FUNNELED), with one
// exception: the watchdog's thread ends a job that hangs.
//
// A program that no launcher started is a world of one and never touches MPI.
#pragma once

#include <climits>
#include <memory>

#include "comm/communicator.h"

namespace pkmesh {

struct MpiOptions {
  // Most elements (or bytes, for what is not reduced) that go into one MPI call; a test lowers it.
  int64_t largest_count = INT_MAX;
  // How much of the all-reduces that are large or only started is under way (comm/mpi_sums.h); a test lowers it. It
  // takes so much memory, with so many ranks, for all-reduces of so many bytes each.
  int64_t bytes_at_once = int64_t{2} << 20;
  int64_t memory(int64_t ranks, int64_t bytes) const;
  // A test's: as if each host had so many of the ranks. 0: as MPI says.
  int ranks_each = 0;
  // As Communicator::watch, which changes it later.
  Clock::duration watch = std::chrono::minutes(10);
};

// MPI from here to the end of the scope; outlives every communicator it made. Left by an exception, it ends the job
// with exit code 1: MPI_Finalize would wait for ranks that wait for this one. So catch inside, say what happened, and
// call world.abort(code).
class MpiSession {
 public:
  // Throws UserError if a launcher started several tasks that MPI would not connect.
  MpiSession(int* argc, char*** argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  // True if a launcher (mpirun, srun) started this process.
  static bool launched();
  // All ranks of the job, collectively: over MPI if launched, else a world of one. It must be destroyed on all ranks.
  std::unique_ptr<Communicator> world(const MpiOptions& options = {});

 private:
  int uncaught_exceptions_;
};

}  // namespace pkmesh
