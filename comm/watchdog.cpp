// SPDX-License-Identifier: Apache-2.0
#include "comm/watchdog.h"

#include <algorithm>
#include <cstring>

#include "runtime/check.h"

namespace pkmesh {

const char* to_string(Collective collective) {
  switch (collective) {
    case Collective::kAllReduce:
      return "all_reduce";
    case Collective::kReduceScatter:
      return "reduce_scatter";
    case Collective::kAllGather:
      return "all_gather";
    case Collective::kAllToAll:
      return "all_to_all";
    case Collective::kAllToAllV:
      return "all_to_all_v";
    case Collective::kBroadcast:
      return "broadcast";
    case Collective::kBarrier:
      return "barrier";
  }
  return "?";
}

void RankStatus::Place::enter(int64_t call_number, Collective collective, Purpose purpose, int64_t size) {
  call.store(call_number, std::memory_order_relaxed);
  what.store(static_cast<int64_t>(collective) * kPurposes + static_cast<int64_t>(purpose), std::memory_order_relaxed);
  bytes.store(size, std::memory_order_relaxed);
  inside.store(1, std::memory_order_release);
}

void RankStatus::label(std::string_view text) {
  std::array<uint64_t, kLabelWords> words{};
  std::memcpy(words.data(), text.data(), std::min(text.size(), sizeof(words) - 1));
  for (size_t i = 0; i < kLabelWords; ++i) label_[i].store(words[i], std::memory_order_relaxed);
}

RankStatus::Snapshot RankStatus::read() const {
  Snapshot snapshot;
  const bool host = host_.entered();
  snapshot.inside = host || device_.entered();
  const Place& place = snapshot.inside && !host ? device_ : host_;
  snapshot.call = place.call.load(std::memory_order_relaxed);
  const int64_t what = place.what.load(std::memory_order_relaxed);
  snapshot.collective = static_cast<Collective>(what / kPurposes);
  snapshot.purpose = static_cast<Purpose>(what % kPurposes);
  snapshot.bytes = place.bytes.load(std::memory_order_relaxed);
  std::array<char, kLabelWords * sizeof(uint64_t) + 1> text{};
  for (size_t i = 0; i < kLabelWords; ++i) {
    const uint64_t word = label_[i].load(std::memory_order_relaxed);
    std::memcpy(text.data() + i * sizeof(word), &word, sizeof(word));
  }
  snapshot.label = text.data();
  return snapshot;
}

std::string to_string(const RankStatus::Snapshot& status) {
  if (status.call == 0) return "nothing yet";
  return fmt::format("{} for {}, {} bytes, call {}{}", to_string(status.collective), to_string(status.purpose),
                     status.bytes, status.call, status.label.empty() ? "" : " (" + status.label + ")");
}

StatusBoard StatusBoard::alone(int rank) {
  const auto status = std::make_shared<RankStatus>();
  return {rank, {rank}, {status.get()}, status};
}

RankStatus& StatusBoard::own() const {
  const auto place = std::lower_bound(ranks.begin(), ranks.end(), rank) - ranks.begin();
  return *statuses[static_cast<size_t>(place)];
}

namespace {

// "rank 1 has waited 600.0 s in X; rank 3 is not there: it left Y". From this rank's view of its host.
std::string report_hang(const StatusBoard& board, const RankStatus::Snapshot& mine, double seconds) {
  std::string report = fmt::format("rank {} has waited {:.1f} s in {}", board.rank, seconds, to_string(mine));
  bool all_here = true;
  for (size_t i = 0; i < board.ranks.size(); ++i) {
    const auto other = board.statuses[i]->read();
    if (board.ranks[i] == board.rank || (other.inside && other.call == mine.call)) continue;
    all_here = false;
    report += fmt::format("; rank {} is not there: {} {}", board.ranks[i], other.inside ? "it waits in" : "it left",
                          to_string(other));
  }
  if (all_here) report += "; so do all ranks that this one can see: look for the missing one on another host";
  return report;
}

}  // namespace

Watchdog::Watchdog(const StatusBoard& board, Clock::duration limit, std::function<void(const std::string&)> on_hang,
                   std::function<std::string()> poll)
    : board_(board), limit_(limit), on_hang_(std::move(on_hang)), poll_(std::move(poll)), thread_([this] { look(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void Watchdog::look() {
  int64_t call = 0;  // that was under way at the last look, and since when
  auto since = Clock::now();
  const bool limited = limit_ > Clock::duration::zero();
  const Clock::duration second = std::chrono::seconds(1);
  const auto between_looks = limited ? std::min(limit_ / 8, second) : second;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, between_looks, [&] { return stop_; })) {
    if (const std::string error = poll_(); !error.empty()) {
      lock.unlock();
      on_hang_(error);
      return;
    }
    const auto status = board_.own().read();
    const auto now = Clock::now();
    if (!status.inside || status.call != call) {
      call = status.inside ? status.call : 0;
      since = now;
    } else if (limited && now - since > limit_) {
      lock.unlock();
      on_hang_(report_hang(board_, status, std::chrono::duration<double>(now - since).count()));
      return;
    }
  }
}

}  // namespace pkmesh
