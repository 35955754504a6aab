// SPDX-License-Identifier: Apache-2.0
// Time taken with care, and what is told about it. Each figure is a median with its range over repetitions after a
// warm-up; rank 0 prints tables line by line as they come, and everything goes into one JSON object as well.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "runtime/range.h"

namespace pkmesh {

struct Spread {
  double median = 0;
  double min = 0;
  double max = 0;
};
// Of at least one sample; of an even number, the median is the mean of the middle two.
Spread spread_of(std::vector<double> samples);
nlohmann::json to_json(const Spread& spread);

// y = at_zero + slope x by least squares, through at least two different x.
struct Line {
  double at_zero = 0;
  double slope = 0;
  double worst = 0;  // furthest point from the line, as a share of its y
};
Line fit_line(const std::vector<double>& x, const std::vector<double>& y);

template <class Work>
double milliseconds(const Work& work) {
  const auto begin = Clock::now();
  work();
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// Milliseconds of work(), which must do the same each time it is called. Work of less than a millisecond is repeated
// until it has taken one, so that the clock does not matter. Not collective.
template <class Work>
Spread measure(int repeats, const Work& work) {
  constexpr double kShortest = 1.0;
  work();
  const double once = milliseconds(work);
  const int inner = static_cast<int>(std::clamp(std::ceil(kShortest / std::max(once, 1e-4)), 1.0, 10000.0));
  std::vector<double> samples;
  for (int i = 0; i < repeats; ++i)
    samples.push_back(milliseconds([&] {
                        for (int j = 0; j < inner; ++j) work();
                      }) /
                      inner);
  return spread_of(std::move(samples));
}

// Milliseconds of work() each time after prepare(), whose time does not count.
template <class Prepare, class Work>
Spread measure_after(int repeats, const Prepare& prepare, const Work& work) {
  std::vector<double> samples;
  for (int i = -1; i < repeats; ++i) {  // the first is a warm-up
    prepare();
    const double sample = milliseconds(work);
    if (i >= 0) samples.push_back(sample);
  }
  return spread_of(std::move(samples));
}

// The same number on every rank: the greatest of their figures.
double slowest(Communicator& world, double figure);

// Milliseconds of collective work, on the rank that took longest. All ranks start together.
template <class Work>
Spread measure_together(Communicator& world, int repeats, const Work& work) {
  std::vector<double> samples;
  for (int i = -1; i < repeats; ++i) {  // the first is a warm-up
    world.barrier();
    const double sample = slowest(world, milliseconds(work));
    if (i >= 0) samples.push_back(sample);
  }
  return spread_of(std::move(samples));
}

// Adds up the time of each range by name.
class RangeClock final : public RangeObserver {
 public:
  RangeClock() : former_(observe_ranges(this)) {}
  ~RangeClock() override { observe_ranges(former_); }
  void on_range(std::string_view name, Clock::time_point begin, Clock::time_point end) override {
    milliseconds_[std::string(name)] += std::chrono::duration<double, std::milli>(end - begin).count();
  }
  std::map<std::string, double> take() { return std::exchange(milliseconds_, {}); }

 private:
  std::map<std::string, double> milliseconds_;
  RangeObserver* former_;
};

// What a benchmark found: lines for people, as they come, and figures for programs.
class BenchReport {
 public:
  // Lines go to standard output if it prints: on rank 0.
  explicit BenchReport(bool prints) : prints_(prints) {}
  void line(const std::string& text);
  const std::string& text() const { return text_; }

  nlohmann::json figures = nlohmann::json::object();

 private:
  bool prints_;
  std::string text_;
};

// "12.3 (11.9-14.0)" in milliseconds, with digits that suit.
std::string to_text(const Spread& milliseconds);

}  // namespace pkmesh
