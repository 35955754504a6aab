// SPDX-License-Identifier: Apache-2.0
// For comm/mpi.cpp only: MPI's handles, which ranks share a host, and the memory that these share.
#pragma once

#include <mpi.h>

#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "comm/shared_sums.h"

// Every MPI call stands inside PKM_MPI(...), which throws with MPI's own words, the rank and the host.
#define PKM_MPI(call) ::pkmesh::check_mpi((call), #call, __FILE__, __LINE__)

namespace pkmesh {

void check_mpi(int status, const char* call, const char* file, int line);

// All ranks once more. Freeing the handles is collective, so an exception leaves them to the operating system.
class MpiGroup {
 public:
  MpiGroup();
  ~MpiGroup();
  MpiGroup(const MpiGroup&) = delete;
  MpiGroup& operator=(const MpiGroup&) = delete;

  // Collective, as what follows. A host is a group of ranks that share memory; its name is for people only.
  Hosts find_hosts() const;
  StatusBoard make_board();
  // Of all ranks, which are on one host. Null on all, if they are too few or too many, or can share no memory.
  std::unique_ptr<SharedSums> make_sums();

  MPI_Comm world = MPI_COMM_NULL;
  MPI_Comm host = MPI_COMM_NULL;  // the ranks of this host
  int rank = 0;
  int size = 1;

 private:
  template <class T>
  std::vector<T*> show_to_host();

  std::vector<MPI_Win> windows_;
};

}  // namespace pkmesh
