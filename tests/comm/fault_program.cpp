// SPDX-License-Identifier: Apache-2.0
// A job of several ranks in which rank 1 does what the first argument says; the others wait for it in an all-reduce.
// The second argument says over what: mpi, or on device memory host_staged or nccl.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "comm/device_communicator.h"
#include "comm/mpi.h"
#include "runtime/buffer.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

constexpr int64_t kGradients = 5'000'000;        // sums of several pieces
constexpr int64_t kGradientsOverNccl = 200'000;  // the tests' NCCL takes no more

// What every rank works with: memory where its communicator takes it, and the end of all work on it.
struct Job {
  Communicator& world;
  Stream& stream;
  std::span<float> gradients;  // outlive what the communicator does with them
  Buffer<float> floats(int64_t count) const { return {stream.device(), count}; }
  // As many elements from every rank as to itself, or so many to each of the others.
  void exchange(int64_t elements, int64_t to_others) const {
    const std::vector<int64_t> counts(static_cast<size_t>(world.size()), elements);
    std::vector<int64_t> in_counts(counts.size(), to_others);
    in_counts[static_cast<size_t>(world.rank())] = elements;
    const auto in = floats(elements + to_others * (world.size() - 1));
    const auto out = floats(elements * world.size());
    world.all_to_all_v<float>(in.span(), in_counts, out.span(), counts, Purpose::kPartials);
    stream.synchronize();
  }
};

void misbehave(const Job& job, const std::string& how) {
  if (how == "abort") job.world.abort(2);
  if (how == "throw" || how == "throw_early" || how == "throw_ahead") user_error("rank 1 has had enough");
  if (how == "die") std::raise(SIGKILL);
  if (how == "hang") std::this_thread::sleep_for(std::chrono::minutes(2));
  if (how == "counts") job.exchange(1, 1);
  if (how == "fewer") job.exchange(2, 1);
  if (how == "more") job.exchange(2, 3);
}

void run(const Job& job, const std::string& how) {
  Communicator& world = job.world;
  world.watch(how == "hang"             ? std::chrono::milliseconds(500)
              : how == "lose_unwatched" ? std::chrono::seconds(0)
                                        : std::chrono::seconds(60));
  const Communicator::Label label(world, "step 17");
  world.barrier();
  // Who leaves this scope by an exception waits for these sums, and the others wait for who throws.
  Pending under_way;
  // Ahead of the others, which have not begun theirs, it waits in vain.
  if (how == "throw_early" || (how == "throw_ahead" && world.rank() == 1))
    under_way = world.all_reduce_async(job.gradients, Reduction::kSum, Purpose::kDense);
  if (world.rank() == 1)
    misbehave(job, how);
  else if (how == "fewer" || how == "more")
    job.exchange(2, 2);
  if (how == "counts") job.exchange(2, 2);  // rank 1 too, a second one: NCCL tells of the first when it is called again
  if (how == "lose" || how == "lose_unwatched") job.exchange(1, 1);
  const auto data = job.floats(4);
  world.all_reduce(data.span(), Reduction::kSum, Purpose::kDense);
  job.stream.synchronize();
}

void run_over(Communicator& host, const std::string& kind, const std::string& how) {
  if (kind == "mpi") {
    Stream stream;
    const Buffer<float> gradients(Device{}, kGradients);
    return run({host, stream, gradients.span()}, how);
  }
  const Device device{DeviceKind::kCuda, 0};
  Stream stream(device);
  const Buffer<float> gradients(device, kind == "nccl" ? kGradientsOverNccl : kGradients);
  const auto link = kind == "nccl" ? DeviceLink::kNccl : DeviceLink::kHostStaged;
  const auto world = make_device_communicator(host, device, link);
  world->use(stream);
  run({*world, stream, gradients.span()}, how);
}

}  // namespace
}  // namespace pkmesh

int main(int argc, char** argv) {
  try {
    pkmesh::MpiSession session(&argc, &argv);
    const auto world = session.world();
    try {
      pkmesh::run_over(*world, argc > 2 ? argv[2] : "mpi", argc > 1 ? argv[1] : "nothing");
    } catch (const std::exception& error) {
      std::fprintf(stderr, "error: %s\n", error.what());
      throw;  // the session's end is then the job's
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 3;
  }
  return 0;
}
