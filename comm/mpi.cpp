// SPDX-License-Identifier: Apache-2.0
// How each collective is made of MPI's: int counts force pieces. An all-to-all is one send and one receive per peer,
// always, so that its cost does not depend on which algorithm a library prefers for uneven counts, and two of them may
// be under way: messages between two ranks keep their order, and all ranks call in one order. All-reduces that are
// large or only started are made of messages, too (comm/mpi_sums.h); they go on between ops, and in everything that
// waits. So do sums of which each rank gets its shares; where all ranks are on one host these pass without MPI.
#include "comm/mpi.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <thread>

#include "comm/mpi_group.h"
#include "comm/mpi_sums.h"
#include "comm/self.h"
#include "runtime/check.h"
#include "runtime/log.h"

namespace pkmesh {
namespace {

constexpr int kTag = 1;                        // MpiGroup and MpiSums have others
constexpr int64_t kSmall = int64_t{64} << 10;  // bytes of an all-reduce that is MPI's: fewer messages, more bytes

MPI_Datatype mpi_type(ElementType type) {
  switch (type) {
    case ElementType::kByte:
      return MPI_BYTE;
    case ElementType::kInt32:
      return MPI_INT32_T;
    case ElementType::kInt64:
      return MPI_INT64_T;
    case ElementType::kFloat:
      return MPI_FLOAT;
    case ElementType::kDouble:
      return MPI_DOUBLE;
  }
  PKM_CHECK(false, "no element type {}", static_cast<int>(type));
}

MPI_Op mpi_op(Reduction reduction) {
  return reduction == Reduction::kSum ? MPI_SUM : reduction == Reduction::kMax ? MPI_MAX : MPI_MIN;
}

// Calls body(begin, count) for consecutive pieces of at most `largest`; once for nothing if `always`.
template <class Body>
void in_pieces(int64_t count, int64_t largest, bool always, const Body& body) {
  if (count == 0 && always) body(int64_t{0}, 0);
  for (int64_t begin = 0; begin < count; begin += largest)
    body(begin, static_cast<int>(std::min(largest, count - begin)));
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(std::unique_ptr<MpiGroup> group, const MpiOptions& options)
      : Communicator(group->rank, group->size, hosts_of(*group, options)),
        group_(std::move(group)),
        options_(options),
        started_(group_->world, rank(), hosts(), {options.bytes_at_once, options.largest_count},
                 [this](double seconds) { add_wait(started_for_, seconds); }) {}
  ~MpiCommunicator() override { stop_watching(); }

  // Lets the watchdogs of a host see its ranks, and shares pass through memory where all ranks have it in common.
  // Collective. Not for twins: their waits are those of the communicator that uses them.
  void share_memory() {
    show_on(group_->make_board());
    if (hosts().count() == 1) sums_ = group_->make_sums();
  }
  bool shares_work() const override { return size() > 1; }
  bool all_share_memory() const override { return sums_ != nullptr; }
  std::vector<Share> shares(int64_t count, int rank) const override {
    return sums_ != nullptr ? std::vector{share_of(count, rank, size())} : started_.shares(count, rank);
  }

  [[noreturn]] void abort(int exit_code) override {
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
  }

 protected:
  void run_all_reduce(const Reduce& reduce) override {
    if (std::ssize(reduce.data) > kSmall || reduce.count() > options_.largest_count)
      return start_all_reduce(reduce).wait();
    complete([&](MPI_Request* request) {
      return MPI_Iallreduce(MPI_IN_PLACE, reduce.data.data(), static_cast<int>(reduce.count()), mpi_type(reduce.type),
                            mpi_op(reduce.reduction), group_->world, request);
    });
  }

  Pending start_all_reduce(const Reduce& reduce) override {
    if (size() == 1) return {};
    return pending(started_.start(reduce.data, size_of(reduce.type), mpi_type(reduce.type), mpi_op(reduce.reduction),
                                  reduce.wire));
  }

  double crossed_by_started(const Reduce& reduce) const override {
    return started_.crossing(std::ssize(reduce.data), reduce.wire);
  }

  void run_all_gather(std::span<const std::byte> in, std::span<std::byte> out) override {
    const auto block = static_cast<int64_t>(in.size());
    if (static_cast<int64_t>(out.size()) <= options_.largest_count) {
      complete([&](MPI_Request* request) {
        return MPI_Iallgather(in.data(), static_cast<int>(block), MPI_BYTE, out.data(), static_cast<int>(block),
                              MPI_BYTE, group_->world, request);
      });
      return;
    }
    exchange([&](int) { return in; },
             [&](int peer) { return out.subspan(static_cast<size_t>(peer * block), in.size()); })
        .wait();
  }

  Pending start_all_to_all_v(const Blocks& blocks) override {
    const auto starts = [&](std::span<const int64_t> counts) {
      std::vector<size_t> bytes(counts.size() + 1, 0);
      for (size_t r = 0; r < counts.size(); ++r)
        bytes[r + 1] = bytes[r] + static_cast<size_t>(counts[r] * blocks.element_bytes);
      return bytes;
    };
    const auto block = [](auto span, const std::vector<size_t>& bounds, int peer) {
      const auto r = static_cast<size_t>(peer);
      return span.subspan(bounds[r], bounds[r + 1] - bounds[r]);
    };
    const auto from = starts(blocks.in_counts);
    const auto to = starts(blocks.out_counts);
    return exchange([&](int peer) { return block(blocks.in, from, peer); },
                    [&](int peer) { return block(blocks.out, to, peer); });
  }

  void run_broadcast(std::span<std::byte> data, int root) override {
    in_pieces(static_cast<int64_t>(data.size()), options_.largest_count, false, [&](int64_t begin, int count) {
      complete([&](MPI_Request* request) {
        return MPI_Ibcast(data.data() + begin, count, MPI_BYTE, root, group_->world, request);
      });
    });
  }

  void run_barrier() override {
    complete([&](MPI_Request* request) { return MPI_Ibarrier(group_->world, request); });
  }

  Pending start_sum_shares(const Reduce& reduce) override {
    const std::span data(reinterpret_cast<float*>(reduce.data.data()), static_cast<size_t>(reduce.count()));
    if (sums_ == nullptr) return pending(started_.start_sum_shares(data, reduce.wire));
    sums_->sum(data);
    return {};
  }

  Pending start_gather_shares(std::span<float> data, Wire wire, std::span<const bf16> changes) override {
    if (sums_ == nullptr) return pending(started_.start_gather_shares(data, wire, changes));
    sums_->gather(data);
    return {};
  }

  std::unique_ptr<Communicator> twin() override {
    return std::make_unique<MpiCommunicator>(std::make_unique<MpiGroup>(), options_);
  }

  void on_hang(const std::string& report) override {
    log_error("pkmesh: " + report);
    std::this_thread::sleep_for(std::chrono::seconds(1));  // ranks of other hosts see other neighbours: let them speak
    abort(1);
  }

 private:
  static Hosts hosts_of(const MpiGroup& group, const MpiOptions& options) {
    if (options.ranks_each == 0) return group.find_hosts();
    return Hosts::even(group.size, (group.size + options.ranks_each - 1) / options.ranks_each);
  }

  Pending pending(int64_t operation) {
    started_for_ = call().purpose;
    return Pending([this, operation] { started_.wait(operation); });
  }

  // A blocking call, in which sums that were started go on: always so, for MPI may add up in another order than in its
  // own blocking one.
  template <class Start>
  static void complete(const Start& start) {
    MPI_Request request = MPI_REQUEST_NULL;
    PKM_MPI(start(&request));
    PKM_MPI(wait_for(request));
  }

  // A message on its way here.
  struct Expected {
    int rank;
    int bytes;
  };
  // Sends in_of(peer) to every peer and fills out_of(peer) from it. Receives are posted first; sends start at the next
  // rank, so that not all ranks begin with rank 0.
  template <class InOf, class OutOf>
  Pending exchange(const InOf& in_of, const OutOf& out_of) {
    std::vector<MPI_Request> requests;
    std::vector<Expected> expected;  // one per receive
    for (int step = 1; step < size(); ++step) {
      const int peer = (rank() - step + size()) % size();
      const std::span<std::byte> out = out_of(peer);
      in_pieces(static_cast<int64_t>(out.size()), options_.largest_count, true, [&](int64_t begin, int count) {
        PKM_MPI(MPI_Irecv(out.data() + begin, count, MPI_BYTE, peer, kTag, group_->world, &requests.emplace_back()));
        expected.push_back({peer, count});
      });
    }
    for (int step = 1; step < size(); ++step) {
      const int peer = (rank() + step) % size();
      const std::span<const std::byte> in = in_of(peer);
      in_pieces(static_cast<int64_t>(in.size()), options_.largest_count, true, [&](int64_t begin, int count) {
        PKM_MPI(MPI_Isend(in.data() + begin, count, MPI_BYTE, peer, kTag, group_->world, &requests.emplace_back()));
      });
    }
    const std::span<const std::byte> kept = in_of(rank());
    PKM_CHECK(kept.size() == out_of(rank()).size(), "rank {} sends itself {} bytes and expects {}", rank(), kept.size(),
              out_of(rank()).size());
    if (!kept.empty()) std::memcpy(out_of(rank()).data(), kept.data(), kept.size());
    return Pending([this, requests = std::move(requests), expected = std::move(expected)]() mutable {
      finish_exchange(requests, expected);
    });
  }

  // Receives one after the other: Open MPI 4.1's MPI_Waitall may wait for ever where one of them fails.
  void finish_exchange(std::vector<MPI_Request>& requests, const std::vector<Expected>& expected) const {
    for (size_t i = 0; i < expected.size(); ++i) {
      MPI_Status received;
      const int status = wait_for(requests[i], &received);
      int kind = MPI_SUCCESS;
      MPI_Error_class(status, &kind);
      PKM_CHECK(kind != MPI_ERR_TRUNCATE, "rank {} expects {} bytes from rank {}, which sent more", rank(),
                expected[i].bytes, expected[i].rank);
      PKM_MPI(status);
      int bytes = 0;
      PKM_MPI(MPI_Get_count(&received, MPI_BYTE, &bytes));
      PKM_CHECK(bytes == expected[i].bytes, "rank {} expects {} bytes from rank {}, which sent {}", rank(),
                expected[i].bytes, expected[i].rank, bytes);
    }
    for (MPI_Request& sent : std::span(requests).subspan(expected.size())) PKM_MPI(wait_for(sent));
  }

  const std::unique_ptr<MpiGroup> group_;
  const MpiOptions options_;
  std::unique_ptr<SharedSums> sums_;  // null: not all ranks share memory
  MpiSums started_;
  Purpose started_for_ = Purpose::kControl;  // the last of them, for what goes on between ops
};

// srun without --mpi=... starts tasks that know nothing of each other: each would be a world of one.
void refuse_loose_tasks() {
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  if (tasks != nullptr && std::atoi(tasks) > 1)
    user_error("srun started {} tasks that MPI cannot connect; use srun --mpi=pmix, or mpirun", tasks);
}

}  // namespace

int64_t MpiOptions::memory(int64_t ranks, int64_t bytes) const {
  return MpiSums::memory(ranks, bytes_at_once, bytes);
}

bool MpiSession::launched() {
  const auto has = [](const char* name) { return std::getenv(name) != nullptr; };
  return has("OMPI_COMM_WORLD_RANK") || has("PMIX_RANK") || has("PMI_RANK") || has("PMI_FD");
}

MpiSession::MpiSession(int* argc, char*** argv) : uncaught_exceptions_(std::uncaught_exceptions()) {
  if (!launched()) {
    refuse_loose_tasks();
    return;
  }
  int provided = 0;
  PKM_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided));
  PKM_CHECK(provided >= MPI_THREAD_FUNNELED, "this MPI library is for single-threaded programs only");
}

MpiSession::~MpiSession() {
  if (!launched()) return;
  if (std::uncaught_exceptions() > uncaught_exceptions_) MPI_Abort(MPI_COMM_WORLD, 1);
  MPI_Finalize();
}

std::unique_ptr<Communicator> MpiSession::world(const MpiOptions& options) {
  if (!launched()) return std::make_unique<SelfCommunicator>();
  auto world = std::make_unique<MpiCommunicator>(std::make_unique<MpiGroup>(), options);
  world->share_memory();
  world->watch(options.watch);
  return world;
}

}  // namespace pkmesh
