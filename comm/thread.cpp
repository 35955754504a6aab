// SPDX-License-Identifier: Apache-2.0
#include "comm/thread.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <thread>

#include "runtime/check.h"

namespace pkmesh {
namespace {

// What one rank brings to a collective.
struct Offer {
  std::string what;  // must be the same on all ranks
  std::vector<std::byte> data;
  std::vector<int64_t> counts;  // all-to-all-v: elements for each rank
  bool there = false;
};

// The n-th collective of the group. Offers are complete, and constant, once all ranks have come.
struct Meeting {
  explicit Meeting(int ranks) : offers(static_cast<size_t>(ranks)), missing(ranks) {}
  std::vector<Offer> offers;
  int missing;
};

// What the ranks share. Everything below the mutex is guarded by it.
class Group {
 public:
  Group(int ranks, ThreadOptions options)
      : statuses(static_cast<size_t>(ranks)),
        options_(std::move(options)),
        ranks_(ranks),
        left_(static_cast<size_t>(ranks)) {}

  // The `number`-th collective of a communicator; twins differ in `line`.
  std::shared_ptr<Meeting> join(const std::vector<int>& line, int64_t number, int rank, Offer offer) {
    const std::lock_guard lock(mutex_);
    throw_if_ended();
    const auto key = std::make_pair(line, number);
    auto meeting = meetings_[key];  // a copy: outlives its place among the incomplete ones
    if (meeting == nullptr) meetings_[key] = meeting = std::make_shared<Meeting>(ranks_);
    offer.there = true;
    meeting->offers[static_cast<size_t>(rank)] = std::move(offer);
    if (--meeting->missing == 0) {
      meetings_.erase(key);
      changed_.notify_all();
    }
    return meeting;
  }

  void wait_for_all(const Meeting& meeting, int rank) {
    std::unique_lock lock(mutex_);
    bool hopeless = false;
    changed_.wait_for(lock, options_.timeout, [&] {
      for (size_t r = 0; r < left_.size(); ++r) hopeless |= left_[r] && !meeting.offers[r].there;
      return meeting.missing == 0 || error_ != nullptr || hopeless;
    });
    if (meeting.missing == 0) return;
    throw_if_ended();
    PKM_CHECK(false, "rank {} {} in {}: {} did not come", rank, hopeless ? "waits in vain" : "waited too long",
              meeting.offers[static_cast<size_t>(rank)].what, missing_ranks(meeting, hopeless));
  }

  // The rank's body has returned: it joins nothing more.
  void leave(int rank) {
    const std::lock_guard lock(mutex_);
    left_[static_cast<size_t>(rank)] = true;
    changed_.notify_all();
  }

  // The first error is the one that counts; all ranks that wait get a JobAborted.
  void end(std::exception_ptr error, const std::string& why, int exit_code) {
    const std::lock_guard lock(mutex_);
    if (error_ != nullptr) return;
    error_ = std::move(error);
    why_ = why;
    exit_code_ = exit_code;
    changed_.notify_all();
  }

  std::exception_ptr error() {
    const std::lock_guard lock(mutex_);
    return error_;
  }

  std::vector<RankStatus> statuses;

 private:
  void throw_if_ended() const {
    if (error_ != nullptr) throw JobAborted(why_, exit_code_);
  }
  std::string missing_ranks(const Meeting& meeting, bool only_left) const {
    std::string names;
    for (size_t r = 0; r < meeting.offers.size(); ++r)
      if (!meeting.offers[r].there && (left_[r] || !only_left))
        names += fmt::format("{}rank {}", names.empty() ? "" : ", ", r);
    return names;
  }

  const ThreadOptions options_;
  const int ranks_;
  std::vector<bool> left_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::pair<std::vector<int>, int64_t>, std::shared_ptr<Meeting>>
      meetings_;  // that some ranks have not joined
  std::exception_ptr error_;
  std::string why_;
  int exit_code_ = 1;
};

template <class T>
void reduce_into(std::span<const std::byte> in, std::span<std::byte> out, Reduction reduction) {
  const auto* source = reinterpret_cast<const T*>(in.data());
  auto* target = reinterpret_cast<T*>(out.data());
  const auto combine = [&](auto&& op) { std::transform(source, source + out.size() / sizeof(T), target, target, op); };
  if (reduction == Reduction::kSum) combine([](T x, T y) { return y + x; });
  if (reduction == Reduction::kMax) combine([](T x, T y) { return std::max(x, y); });
  if (reduction == Reduction::kMin) combine([](T x, T y) { return std::min(x, y); });
}

void reduce_into(std::span<const std::byte> in, std::span<std::byte> out, ElementType type, Reduction reduction) {
  switch (type) {
    case ElementType::kFloat:
      return reduce_into<float>(in, out, reduction);
    case ElementType::kDouble:
      return reduce_into<double>(in, out, reduction);
    case ElementType::kInt32:
      return reduce_into<int32_t>(in, out, reduction);
    case ElementType::kInt64:
      return reduce_into<int64_t>(in, out, reduction);
    case ElementType::kByte:
      break;
  }
  PKM_CHECK(false, "bytes cannot be reduced");
}

void copy(std::span<const std::byte> in, std::span<std::byte> out) {
  PKM_CHECK(in.size() == out.size(), "{} bytes came where {} were expected", in.size(), out.size());
  if (!in.empty()) std::memcpy(out.data(), in.data(), in.size());
}

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(int rank, int size, Hosts hosts, std::shared_ptr<Group> group, std::vector<int> line = {})
      : Communicator(rank, size, std::move(hosts)), group_(std::move(group)), line_(std::move(line)) {
    if (!line_.empty()) return;  // a twin: its waits are those of the communicator that uses it
    StatusBoard board{rank, {}, {}, group_};
    for (int r = 0; r < size; ++r) {
      board.ranks.push_back(r);
      board.statuses.push_back(&group_->statuses[static_cast<size_t>(r)]);
    }
    show_on(board);
  }
  ~ThreadCommunicator() override { stop_watching(); }

  // On several hosts small ones, so that there are many.
  bool shares_work() const override { return size() > 1; }
  bool all_share_memory() const override { return size() > 1 && hosts().count() == 1; }
  std::vector<Share> shares(int64_t count, int rank) const override {
    if (size() == 1 || all_share_memory()) return {share_of(count, rank, size())};
    constexpr int64_t kPiece = 48;
    std::vector<Share> shares;
    for (int64_t begin = 0; begin < count; begin += kPiece) {
      const int64_t piece = std::min(kPiece, count - begin);
      shares.push_back({begin + piece * rank / size(), begin + piece * (rank + 1) / size()});
    }
    return shares;
  }

  [[noreturn]] void abort(int exit_code) override {
    const JobAborted error(fmt::format("rank {} aborted the job with exit code {}", rank(), exit_code), exit_code);
    group_->end(std::make_exception_ptr(error), error.what(), exit_code);
    throw error;
  }

 protected:
  using Result = std::function<void(const Meeting&)>;

  void run_all_reduce(const Reduce& reduce) override { start_all_reduce(reduce).wait(); }

  Pending start_all_reduce(const Reduce& reduce) override {
    return meet(describe("all_reduce", reduce), reduce.data, {}, [reduce](const Meeting& meeting) {
      for (size_t r = 0; r < meeting.offers.size(); ++r) take(meeting.offers[r].data, reduce, r == 0);
    });
  }

  void run_all_gather(std::span<const std::byte> in, std::span<std::byte> out) override {
    meet(fmt::format("all_gather of {} bytes", in.size()), in, {}, [out, n = in.size()](const Meeting& meeting) {
      for (size_t r = 0; r < meeting.offers.size(); ++r) copy(meeting.offers[r].data, out.subspan(r * n, n));
    }).wait();
  }

  Pending start_all_to_all_v(const Blocks& blocks) override {
    const auto unit = static_cast<size_t>(blocks.element_bytes);
    auto result = [out = blocks.out, counts = std::vector(blocks.out_counts.begin(), blocks.out_counts.end()), unit,
                   me = static_cast<size_t>(rank())](const Meeting& meeting) {
      size_t done = 0;
      for (size_t r = 0; r < meeting.offers.size(); ++r) {
        const Offer& offer = meeting.offers[r];
        PKM_CHECK(offer.counts[me] == counts[r], "all_to_all_v: rank {} sends {} elements, rank {} expects {}", r,
                  offer.counts[me], me, counts[r]);
        size_t begin = 0;
        for (size_t p = 0; p < me; ++p) begin += static_cast<size_t>(offer.counts[p]) * unit;
        const size_t bytes = static_cast<size_t>(counts[r]) * unit;
        copy(std::span(offer.data).subspan(begin, bytes), out.subspan(done, bytes));
        done += bytes;
      }
    };
    return meet(fmt::format("all_to_all_v of {}-byte elements", unit), blocks.in, blocks.in_counts, std::move(result));
  }

  void run_broadcast(std::span<std::byte> data, int root) override {
    const bool mine = rank() == root;
    meet(fmt::format("broadcast of {} bytes from rank {}", data.size(), root),
         mine ? std::span<const std::byte>(data) : std::span<const std::byte>(), {},
         [data, root](const Meeting& meeting) { copy(meeting.offers[static_cast<size_t>(root)].data, data); })
        .wait();
  }

  void run_barrier() override {
    meet("barrier", {}, {}, [](const Meeting&) {}).wait();
  }

  // What is undefined is made to show.
  Pending start_sum_shares(const Reduce& reduce) override {
    return meet(describe("sum_shares", reduce), reduce.data, {}, [this, reduce](const Meeting& meeting) {
      for (size_t r = 0; r < meeting.offers.size(); ++r) take(meeting.offers[r].data, reduce, r == 0);
      const std::span data(reinterpret_cast<float*>(reduce.data.data()), static_cast<size_t>(reduce.count()));
      for (int other = 0; other < size(); ++other)
        for (const Share& share : other == rank() ? std::vector<Share>() : shares(reduce.count(), other))
          std::ranges::fill(share.of(data), std::numeric_limits<float>::quiet_NaN());
    });
  }

  Pending start_gather_shares(std::span<float> data, Wire /*wire*/, std::span<const bf16> /*changes*/) override {
    return meet(fmt::format("gather_shares of {} floats", data.size()), std::as_bytes(data), {},
                [this, data](const Meeting& meeting) {
                  for (int other = 0; other < size(); ++other) {
                    const std::span theirs(
                        reinterpret_cast<const float*>(meeting.offers[static_cast<size_t>(other)].data.data()),
                        data.size());
                    for (const Share& share : shares(std::ssize(data), other))
                      std::ranges::copy(share.of(theirs), share.of(data).begin());
                  }
                });
  }

  std::unique_ptr<Communicator> twin() override {
    std::vector<int> line = line_;
    line.push_back(++twins_);
    return std::make_unique<ThreadCommunicator>(rank(), size(), hosts(), group_, std::move(line));
  }

  void on_hang(const std::string& report) override {
    group_->end(std::make_exception_ptr(InternalError(report)), report, 1);
  }

 private:
  static std::string describe(const char* name, const Reduce& reduce) {
    return fmt::format("{} of {} elements, type {}, reduction {}", name, reduce.count(), static_cast<int>(reduce.type),
                       static_cast<int>(reduce.reduction));
  }

  static void take(std::span<const std::byte> in, const Reduce& out, bool first) {
    if (first)
      copy(in, out.data);
    else
      reduce_into(in, out.data, out.type, out.reduction);
  }

  Pending meet(std::string what, std::span<const std::byte> data, std::span<const int64_t> counts, Result result) {
    Offer offer{std::move(what), {data.begin(), data.end()}, {counts.begin(), counts.end()}};
    auto meeting = group_->join(line_, ++meetings_, rank(), std::move(offer));
    return Pending([this, meeting = std::move(meeting), result = std::move(result)] {
      group_->wait_for_all(*meeting, rank());
      const Offer& mine = meeting->offers[static_cast<size_t>(rank())];
      for (size_t r = 0; r < meeting->offers.size(); ++r)
        PKM_CHECK(meeting->offers[r].what == mine.what, "rank {} calls {}, rank {} calls {}", rank(), mine.what, r,
                  meeting->offers[r].what);
      result(*meeting);
    });
  }

  const std::shared_ptr<Group> group_;
  const std::vector<int> line_;  // the first: empty; the n-th twin: its origin's, and n
  int64_t meetings_ = 0;
  int twins_ = 0;
};

Hosts pretend(int ranks, const std::vector<int>& host_of_rank) {
  if (host_of_rank.empty()) return Hosts::one(ranks);
  Hosts hosts{{}, host_of_rank};
  const int last = *std::max_element(host_of_rank.begin(), host_of_rank.end());
  for (int h = 0; h <= last; ++h) hosts.names.push_back(fmt::format("host{}", h));
  return hosts;
}

}  // namespace

void run_ranks(int ranks, const std::function<void(Communicator& world)>& body, const ThreadOptions& options) {
  const auto group = std::make_shared<Group>(ranks, options);
  const Hosts hosts = pretend(ranks, options.host_of_rank);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      try {
        ThreadCommunicator world(rank, ranks, hosts, group);
        body(world);
        group->leave(rank);
      } catch (const std::exception& error) {
        group->end(std::current_exception(), fmt::format("rank {} ended: {}", rank, error.what()), 1);
      } catch (...) {
        group->end(std::current_exception(), fmt::format("rank {} ended", rank), 1);
      }
    });
  for (std::thread& thread : threads) thread.join();
  if (const auto error = group->error()) std::rethrow_exception(error);
}

}  // namespace pkmesh
