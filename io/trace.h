// SPDX-License-Identifier: Apache-2.0
// Where a rank's time goes: every Range of its thread, kept in memory while it runs and written as a Chrome trace
// (the "JSON Object Format" of the Trace Event Format, complete events "X"), which Perfetto and chrome://tracing open.
// One process of the trace is one rank; ranks share one time axis.
//
// Ranges end innermost first and are kept in that order; once the memory is full, later ones are only counted in the
// totals, which lose nothing.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "runtime/range.h"

namespace pkmesh {

// All ranges of one name: inner ranges are part of the time of outer ones.
struct RangeTotal {
  std::string name;
  int64_t count = 0;
  double ms = 0;
};

class Trace final : public RangeObserver {
 public:
  static constexpr int64_t kCapacity = 1 << 18;  // 6 MiB per rank

  // Collective: agrees on time zero. Clocks of one host are one clock; other hosts' are compared with rank 0's at
  // barriers, to some tens of microseconds. Listens to nothing until observe_ranges(&trace).
  explicit Trace(Communicator& world, int64_t capacity = kCapacity);

  void on_range(std::string_view name, Clock::time_point begin, Clock::time_point end) override;

  int64_t dropped() const { return dropped_; }
  std::vector<RangeTotal> totals() const;  // most time first

  // One event per line. UserError if the file cannot be written.
  void write(const std::string& path) const;

 private:
  struct Event {
    int64_t begin;  // ns since time zero
    int64_t nanoseconds;
    int32_t name;
  };
  int32_t number_of(std::string_view name);

  int rank_;
  std::string host_;
  Clock::time_point zero_;  // of this rank's clock
  int64_t capacity_;
  std::vector<Event> events_;
  int64_t dropped_ = 0;
  std::map<std::string, int32_t, std::less<>> numbers_;  // of names
  std::vector<RangeTotal> totals_;                       // by number
};

// Collective: writes folder/rank00000.json, ... and, by rank 0, all of them as folder/trace.json, whose path it
// returns. UserError on all ranks if any cannot write. Ranks whose file rank 0 cannot see (no shared file system) are
// named in a warning and left out.
std::string write_traces(Communicator& world, const Trace& trace, const std::string& folder);

// "range | calls/step | ms/step | share", at most `lines` of them.
std::string to_table(const std::vector<RangeTotal>& totals, int64_t steps, double step_seconds, int64_t lines = 40);

}  // namespace pkmesh
