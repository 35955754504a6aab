// SPDX-License-Identifier: Apache-2.0
// A Range names a stretch of time on one rank: `Range range("attention forward");` lasts to the end of the scope.
// Where the time goes is the observer's business: a trace file, or nowhere (one load and a branch). In a program with
// CUDA, ranges are NVTX ranges too.
#pragma once

#include <chrono>
#include <cstdint>
#include <string_view>

namespace pkmesh {

using Clock = std::chrono::steady_clock;

class RangeObserver {
 public:
  virtual ~RangeObserver() = default;
  // Called on the thread that ran the range, at its end. `name` is valid during the call only.
  virtual void on_range(std::string_view name, Clock::time_point begin, Clock::time_point end) = 0;
};

// Sets who listens on this thread (each rank has its own main thread); null means nobody. Returns the former one.
RangeObserver* observe_ranges(RangeObserver* observer);

class Range {
 public:
  explicit Range(std::string_view name);  // the name must live as long as the range
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  RangeObserver* observer_;
  std::string_view name_;
  Clock::time_point begin_;
};

}  // namespace pkmesh
