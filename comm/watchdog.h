// SPDX-License-Identifier: Apache-2.0
// A watchdog turns a hang into a message: a thread that looks, a few times per limit, how long this rank has been
// inside one collective. Over the limit it reports which collective, who waits, and who has not come, and ends the job.
//
// Who has not come is read from the status board: each rank writes there what it is doing, in memory that the ranks of
// its host share, so the report needs no help from a communication library that may be the one that hangs.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "comm/ledger.h"
#include "runtime/range.h"

namespace pkmesh {

enum class Collective { kAllReduce, kReduceScatter, kAllGather, kAllToAll, kAllToAllV, kBroadcast, kBarrier };
inline constexpr int kCollectives = 7;
const char* to_string(Collective collective);  // "all_reduce", ...

// What one rank is doing. Lock-free plain words, zero-initialised, so it may live in memory shared by processes.
class RankStatus {
 public:
  struct Snapshot {
    int64_t call = 0;  // number of the call, from 1; 0 before the first
    bool inside = false;
    Collective collective = Collective::kBarrier;
    Purpose purpose = Purpose::kControl;
    int64_t bytes = 0;
    std::string label;
  };
  // By the rank's own thread: the call that it is inside of.
  void enter(int64_t call, Collective collective, Purpose purpose, int64_t bytes) {
    host_.enter(call, collective, purpose, bytes);
  }
  void leave() { host_.leave(); }
  // By the watchdog's thread: what a device does for a call that has returned. It is read while the rank is inside of
  // none; words of its own, so that neither thread undoes what the other says.
  void show_device(int64_t call, Collective collective, Purpose purpose, int64_t bytes) {
    device_.enter(call, collective, purpose, bytes);
  }
  void clear_device() { device_.leave(); }
  void label(std::string_view text);  // cut at 127 characters
  Snapshot read() const;

 private:
  struct Place {
    std::atomic<int64_t> call{0};
    std::atomic<int64_t> inside{0};
    std::atomic<int64_t> what{0};
    std::atomic<int64_t> bytes{0};
    void enter(int64_t call_number, Collective collective, Purpose purpose, int64_t size);
    void leave() { inside.store(0, std::memory_order_release); }
    bool entered() const { return inside.load(std::memory_order_acquire) != 0; }
  };
  static constexpr size_t kLabelWords = 16;
  Place host_, device_;
  std::array<std::atomic<uint64_t>, kLabelWords> label_{};
};
std::string to_string(const RankStatus::Snapshot& status);  // "all_reduce for dense, 4096 bytes, call 12 (step 17)"

// The statuses that this rank can read: its own, and those of the ranks that share memory with it.
struct StatusBoard {
  int rank = 0;
  std::vector<int> ranks;             // ascending
  std::vector<RankStatus*> statuses;  // one per entry of ranks
  std::shared_ptr<void> memory;       // keeps them alive
  RankStatus& own() const;
  static StatusBoard alone(int rank);
};

class Watchdog {
 public:
  // Both are called on the watchdog's thread: poll() at every look, on_hang(report) at most once, after a hang or when
  // poll() returned what went wrong. With limit zero nothing is a hang.
  Watchdog(const StatusBoard& board, Clock::duration limit, std::function<void(const std::string&)> on_hang,
           std::function<std::string()> poll);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void look();

  const StatusBoard board_;
  const Clock::duration limit_;
  const std::function<void(const std::string&)> on_hang_;
  const std::function<std::string()> poll_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace pkmesh
