// SPDX-License-Identifier: Apache-2.0
// A job of several ranks in which rank 1 does what the first argument says; the others wait for it in an all-reduce.
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

#include "comm/mpi.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

void misbehave(Communicator& world, const std::string& how) {
  if (how == "abort") world.abort(2);
  if (how == "throw") user_error("rank 1 has had enough");
  if (how == "hang") std::this_thread::sleep_for(std::chrono::minutes(2));
  if (how == "counts") {
    std::vector<float> in(static_cast<size_t>(world.size()), 1.0F);
    std::vector<float> out = in;
    const std::vector<int64_t> one(in.size(), 1);
    world.all_to_all_v(in, one, std::span(out), one, Purpose::kPartials);
  }
}

void run(Communicator& world, const std::string& how) {
  world.watch(how == "hang" ? std::chrono::milliseconds(500) : std::chrono::seconds(60));
  const Communicator::Label label(world, "step 17");
  world.barrier();
  if (world.rank() == 1) misbehave(world, how);
  if (how == "counts") {  // these expect two elements of everyone, themselves included
    const std::vector<int64_t> two(static_cast<size_t>(world.size()), 2);
    std::vector<float> in(2 * two.size(), 1.0F);
    std::vector<float> out = in;
    world.all_to_all_v(in, two, std::span(out), two, Purpose::kPartials);
  }
  std::vector<float> data(4);
  world.all_reduce(std::span(data), Reduction::kSum, Purpose::kDense);
}

}  // namespace
}  // namespace pkmesh

int main(int argc, char** argv) {
  try {
    pkmesh::MpiSession session(&argc, &argv);
    const auto world = session.world();
    pkmesh::run(*world, argc > 1 ? argv[1] : "nothing");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 3;
  }
  return 0;
}
