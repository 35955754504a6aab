// SPDX-License-Identifier: Apache-2.0
// main() of a test program that runs under mpirun: it makes the session, compares the job's size with
// PKMESH_TEST_RANKS, and lets rank 0 speak (the others print failures only). An exception that escapes a test ends the
// job.
#pragma once

#include "comm/mpi.h"

namespace pkmesh {

MpiSession& test_session();

}  // namespace pkmesh
