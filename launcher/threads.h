// SPDX-License-Identifier: Apache-2.0
// How many threads this rank computes with, on which cores, and whether they spin while they wait. What the user says
// (OMP_NUM_THREADS, OMP_WAIT_POLICY, a binding of mpirun's) is kept; what is left out is chosen so that the ranks of a
// host fill its cores, each with its own.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pkmesh {

// What is known of this process before MPI starts.
struct Cores {
  std::vector<int> bound = {};      // where this process may run now
  std::vector<int> available = {};  // where it might: one logical CPU of each core
  int rank = 0;                     // among the ranks that share what is available
  int ranks = 1;
  bool may_bind = false;            // it is bound by a launcher's default, or not at all under one; nobody chose that
  std::optional<int> threads = {};  // OMP_NUM_THREADS
  bool waits = false;               // OMP_WAIT_POLICY is set
};

struct ThreadPlan {
  int threads = 1;
  std::vector<int> cores;  // to bind this process to; empty: leave it where it is
  bool passive = false;    // waiting threads sleep at once
  std::string text;        // for people: what was chosen and why
};

ThreadPlan plan_threads(const Cores& cores);

// Entry `node` of Slurm's "2(x3),1", which says 2 for nodes 0 to 2 and 1 for node 3; nothing if it has none.
std::optional<int> tasks_of_node(std::string_view list, int node);

// Of OMP_NUM_THREADS, a list with one count per level of nesting, the first; nothing if it is none.
std::optional<int> openmp_threads(std::string_view list);

// UserError if OMP_NUM_THREADS is none, of which OpenMP would make what it can.
void check_threads();

// Starts the program anew, with the same arguments, as the plan says, if that is not how it runs already: OpenMP and
// BLAS read the environment once, before main(). Call it first. Returns the plan's text.
std::string settle_threads(char** argv);

}  // namespace pkmesh
