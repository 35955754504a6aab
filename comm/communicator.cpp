// SPDX-License-Identifier: Apache-2.0
#include "comm/communicator.h"

#include <fmt/format.h>
#include <unistd.h>

#include <numeric>

#include "runtime/check.h"
#include "runtime/range.h"

namespace pkmesh {
namespace {

// "partials: all_to_all_v": a range's name must outlive it, so all of them are made once.
const std::string& range_name(Collective collective, Purpose purpose) {
  static const auto names = [] {
    std::array<std::array<std::string, kPurposes>, kCollectives> all;
    for (int c = 0; c < kCollectives; ++c)
      for (int p = 0; p < kPurposes; ++p)
        all[static_cast<size_t>(c)][static_cast<size_t>(p)] =
            fmt::format("{}: {}", to_string(static_cast<Purpose>(p)), to_string(static_cast<Collective>(c)));
    return all;
  }();
  return names[static_cast<size_t>(collective)][static_cast<size_t>(purpose)];
}

double bus_factor(Collective collective, int ranks) {
  const double others = static_cast<double>(ranks - 1) / ranks;
  switch (collective) {
    case Collective::kAllReduce:
      return 2 * others;
    case Collective::kBroadcast:
      return ranks > 1 ? 1 : 0;
    default:
      return others;
  }
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

int64_t sum(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

int64_t bytes_in(auto span) {
  return static_cast<int64_t>(span.size());
}

}  // namespace

int64_t size_of(ElementType type) {
  switch (type) {
    case ElementType::kByte:
      return 1;
    case ElementType::kInt32:
    case ElementType::kFloat:
      return 4;
    case ElementType::kInt64:
    case ElementType::kDouble:
      return 8;
  }
  PKM_CHECK(false, "no element type {}", static_cast<int>(type));
}

Hosts Hosts::one(int ranks) {
  return {{this_host()}, std::vector<int>(static_cast<size_t>(ranks), 0)};
}

Hosts Hosts::even(int ranks, int hosts) {
  PKM_CHECK(hosts >= 1 && hosts <= ranks, "{} ranks on {} hosts", ranks, hosts);
  Hosts even;
  for (int64_t rank = 0; rank < ranks; ++rank) even.of_rank.push_back(static_cast<int>(rank * hosts / ranks));
  for (int host = 0; host < hosts; ++host) even.names.push_back(fmt::format("host {}", host));
  return even;
}

int Hosts::ranks_each() const {
  const auto ranks = std::ssize(of_rank);
  const int64_t each = count() == 0 ? 0 : ranks / count();
  for (int64_t rank = 0; rank < ranks; ++rank)
    if (each * count() != ranks ||
        of_rank[static_cast<size_t>(rank)] != of_rank[static_cast<size_t>(rank / each * each)])
      return 0;
  return static_cast<int>(each);
}

std::string this_host() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "localhost";
}

Pending& Pending::operator=(Pending&& other) noexcept {
  if (this != &other) {
    Pending former(std::move(*this));  // waits at the end of this scope
    finish_ = std::exchange(other.finish_, nullptr);
  }
  return *this;
}

Pending::~Pending() {
  try {
    wait();
  } catch (...) {  // whoever made the collective fail has ended the job
  }
}

void Pending::wait() {
  if (const auto finish = std::exchange(finish_, nullptr)) finish();
}

Communicator::Communicator(int rank, int size, Hosts hosts)
    : rank_(rank), size_(size), hosts_(std::move(hosts)), board_(StatusBoard::alone(rank)) {
  PKM_CHECK(0 <= rank && rank < size, "rank {} of {}", rank, size);
  PKM_CHECK(static_cast<int>(hosts_.of_rank.size()) == size, "{} ranks but hosts for {}", size, hosts_.of_rank.size());
}

Communicator::Call Communicator::describe(Collective collective, Purpose purpose, int64_t bytes) {
  return {++calls_, collective, purpose, bytes, crossed_in_ring(collective, bytes)};
}

double Communicator::crossed_in_ring(Collective collective, int64_t bytes) const {
  const int next = (rank_ + 1) % size_;
  const bool crosses = hosts_.of_rank[static_cast<size_t>(rank_)] != hosts_.of_rank[static_cast<size_t>(next)];
  return crosses ? static_cast<double>(bytes) * bus_factor(collective, size_) : 0;
}

const Ledger& Communicator::ledger() {
  settle();
  for (Communicator* const one : on_top_) one->settle();
  return *book_;
}

void Communicator::check_reachable(const void* memory) const {
  if (!on_device(memory)) return;
  PKM_CHECK(takes_device_memory(), "this communicator moves host memory only, and was given a device's");
  PKM_CHECK(stream_ != nullptr, "device memory in a collective, but no stream is in use");
}

void Communicator::enter(const Call& call, LedgerEntry entry, const std::function<void()>& body) {
  Range range(range_name(call.collective, call.purpose));
  const auto begin = Clock::now();
  call_ = call;
  excused_ = {};
  board_.own().enter(call.number, call.collective, call.purpose, call.bytes);
  body();
  board_.own().leave();
  entry.seconds = seconds_since(begin + excused_);
  book_->add(call.purpose, entry);
}

void Communicator::run(const Call& call, const std::function<void()>& body) {
  const double bus_bytes = static_cast<double>(call.bytes) * bus_factor(call.collective, size_);
  enter(call, {1, call.bytes, bus_bytes, call.crossed, 0}, body);
}

Pending Communicator::start(const Call& call, const std::function<Pending()>& body) {
  const auto pending = std::make_shared<Pending>();
  run(call, [&] { *pending = body(); });
  if (!pending->under_way()) return {};
  return Pending([this, call, pending] { enter(call, {}, [&] { pending->wait(); }); });
}

void Communicator::all_reduce_bytes(std::span<std::byte> data, ElementType type, Reduction reduction, Purpose purpose) {
  check_reachable(data.data());
  run(describe(Collective::kAllReduce, purpose, bytes_in(data)), [&] { run_all_reduce({data, type, reduction}); });
}

Pending Communicator::all_reduce_bytes_async(const Reduce& reduce, Purpose purpose) {
  check_reachable(reduce.data.data());
  Call call = describe(Collective::kAllReduce, purpose, bytes_in(reduce.data));
  call.crossed = crossed_by_started(reduce);
  return start(call, [&] { return start_all_reduce(reduce); });
}

void Communicator::all_gather_bytes(std::span<const std::byte> in, std::span<std::byte> out, Purpose purpose) {
  check_reachable(in.data());
  check_reachable(out.data());
  PKM_CHECK(bytes_in(out) == size_ * bytes_in(in), "all_gather: out has {} bytes, in {} on each of {} ranks",
            out.size(), in.size(), size_);
  run(describe(Collective::kAllGather, purpose, bytes_in(out)), [&] { run_all_gather(in, out); });
}

void Communicator::all_to_all_bytes(std::span<const std::byte> in, std::span<std::byte> out, Purpose purpose) {
  check_reachable(in.data());
  check_reachable(out.data());
  PKM_CHECK(in.size() == out.size() && bytes_in(in) % size_ == 0, "all_to_all: in has {} bytes, out {}, for {} ranks",
            in.size(), out.size(), size_);
  const int64_t block = bytes_in(in) / size_;
  const std::vector<int64_t> counts(static_cast<size_t>(size_), block);
  auto call = describe(Collective::kAllToAll, purpose, bytes_in(in));
  const int here = hosts_.of_rank[static_cast<size_t>(rank_)];
  call.crossed = 0;
  for (const int host : hosts_.of_rank) call.crossed += host == here ? 0 : static_cast<double>(block);
  run(call, [&] { start_all_to_all_v({in, counts, out, counts, 1}).wait(); });
}

Pending Communicator::all_to_all_v_bytes_async(const Blocks& blocks, Purpose purpose) {
  check_reachable(blocks.in.data());
  check_reachable(blocks.out.data());
  PKM_CHECK(static_cast<int>(blocks.in_counts.size()) == size_ && static_cast<int>(blocks.out_counts.size()) == size_,
            "all_to_all_v: {} in-counts and {} out-counts for {} ranks", blocks.in_counts.size(),
            blocks.out_counts.size(), size_);
  PKM_CHECK(sum(blocks.in_counts) * blocks.element_bytes == bytes_in(blocks.in),
            "all_to_all_v: counts say {} elements go out, the span has {}", sum(blocks.in_counts),
            bytes_in(blocks.in) / blocks.element_bytes);
  PKM_CHECK(sum(blocks.out_counts) * blocks.element_bytes == bytes_in(blocks.out),
            "all_to_all_v: counts say {} elements come in, the span has {}", sum(blocks.out_counts),
            bytes_in(blocks.out) / blocks.element_bytes);
  auto call = describe(Collective::kAllToAllV, purpose, bytes_in(blocks.in));
  call.crossed = 0;
  for (size_t peer = 0; peer < blocks.in_counts.size(); ++peer)
    if (hosts_.of_rank[peer] != hosts_.of_rank[static_cast<size_t>(rank_)])
      call.crossed += static_cast<double>(blocks.in_counts[peer] * blocks.element_bytes);
  return start(call, [&] { return start_all_to_all_v(blocks); });
}

void Communicator::broadcast_bytes(std::span<std::byte> data, int root, Purpose purpose) {
  check_reachable(data.data());
  PKM_CHECK(0 <= root && root < size_, "broadcast from rank {} of {}", root, size_);
  auto call = describe(Collective::kBroadcast, purpose, bytes_in(data));
  if ((rank_ + 1) % size_ == root) call.crossed = 0;  // the end of the chain
  run(call, [&] { run_broadcast(data, root); });
}

// Either is half of an all-reduce, of what crosses too.
Pending Communicator::sum_shares_async(std::span<float> data, Wire wire, Purpose purpose) {
  if (!shares_work()) return sum_async(data, wire, purpose);
  check_reachable(data.data());
  const Reduce reduce{std::as_writable_bytes(data), ElementType::kFloat, Reduction::kSum, wire};
  Call call = describe(Collective::kReduceScatter, purpose, bytes_in(reduce.data));
  call.crossed = crossed_by_started(reduce) / 2;
  return start(call, [&] { return start_sum_shares(reduce); });
}

Pending Communicator::gather_shares_async(std::span<float> data, Wire wire, std::span<const bf16> changes,
                                          Purpose purpose) {
  if (!shares_work()) return {};
  check_reachable(data.data());
  PKM_CHECK(wire == Wire::kExact || std::ssize(changes) == total(shares(std::ssize(data), rank_)),
            "{} changes are not those of a share of {} values", changes.size(), data.size());
  const Reduce as_reduced{std::as_writable_bytes(data), ElementType::kFloat, Reduction::kSum, wire};
  Call call = describe(Collective::kAllGather, purpose, bytes_in(as_reduced.data));
  call.crossed = crossed_by_started(as_reduced) / 2;
  return start(call, [&] { return start_gather_shares(data, wire, changes); });
}

Pending Communicator::start_sum_shares(const Reduce& /*reduce*/) {
  PKM_CHECK(false, "this kind's ranks share no work");
}

Pending Communicator::start_gather_shares(std::span<float> /*data*/, Wire /*wire*/, std::span<const bf16> /*changes*/) {
  PKM_CHECK(false, "this kind's ranks share no work");
}

void Communicator::barrier() {
  run(describe(Collective::kBarrier, Purpose::kControl, 0), [&] { run_barrier(); });
}

void Communicator::watch(Clock::duration limit) {
  watchdog_.reset();
  watch_limit_ = limit;
  if (limit > Clock::duration::zero() || polls())
    watchdog_ = std::make_unique<Watchdog>(
        board_, limit, [this](const std::string& report) { on_hang(report); }, [this] { return poll(); });
}

Communicator::Label::Label(Communicator& communicator, std::string_view text)
    : communicator_(communicator), former_length_(communicator.label_.size()) {
  std::string& label = communicator_.label_;
  if (!label.empty()) label += ", ";
  label += text;
  communicator_.board_.own().label(label);
}

Communicator::Label::~Label() {
  communicator_.label_.resize(former_length_);
  communicator_.board_.own().label(communicator_.label_);
}

}  // namespace pkmesh
