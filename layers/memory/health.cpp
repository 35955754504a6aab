// SPDX-License-Identifier: Apache-2.0
#include "layers/memory/health.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "runtime/check.h"
#include "runtime/range.h"

namespace pkmesh {
namespace {

constexpr Purpose kPurpose = Purpose::kControl;

template <class T>
std::vector<T> gather(Communicator& world, const std::vector<T>& mine) {
  std::vector<T> all(mine.size() * static_cast<size_t>(world.size()));
  world.all_gather<T>(mine, std::span<T>(all), kPurpose);
  return all;
}

// What one rank has, and what all have: the same bits on all ranks, as they add up in rank order.
struct Sums {
  int64_t rows = 0;
  int64_t read = 0;
  int64_t best = 0;
  int64_t selections = 0;
  double weight = 0;
  double counted_log = 0;   // sum of count * log(count)
  double weighted_log = 0;  // sum of weight * log(weight)

  void operator+=(const Sums& other) {
    rows += other.rows;
    read += other.read;
    best += other.best;
    selections += other.selections;
    weight += other.weight;
    counted_log += other.counted_log;
    weighted_log += other.weighted_log;
  }
};

double x_log_x(double x) {
  return x == 0.0 ? 0.0 : x * std::log(x);
}

Sums sum_rows(std::span<const uint32_t> counts, std::span<const float> weights, std::span<const uint8_t> top1) {
  Sums sums;
  sums.rows = std::ssize(counts);
  for (size_t row = 0; row < counts.size(); ++row) {
    sums.read += weights[row] > 0.0F ? 1 : 0;
    sums.selections += counts[row];
    sums.weight += weights[row];
    sums.counted_log += x_log_x(counts[row]);
    sums.weighted_log += x_log_x(weights[row]);
  }
  for (const uint8_t best : top1) sums.best += best != 0 ? 1 : 0;
  return sums;
}

// log N + sum z log z for z = x / total, from the sum of x log x. Rounding does not make it negative.
double kl_to_uniform(int64_t slots, double sum_x_log_x, double total) {
  if (total == 0.0) return 0.0;
  const double kl = std::log(static_cast<double>(slots)) + sum_x_log_x / total - std::log(total);
  return std::isnan(kl) ? kl : std::max(kl, 0.0);
}

// A value and how many rows have it.
struct Run {
  double value;
  int64_t rows;
};

// Ascending; rows of equal value become one run.
std::vector<Run> merge_equal(std::vector<Run> runs) {
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.value < b.value; });
  size_t merged = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (merged > 0 && runs[merged - 1].value == runs[i].value)
      runs[merged - 1].rows += runs[i].rows;
    else
      runs[merged++] = runs[i];
  }
  runs.resize(merged);
  return runs;
}

// This rank's range of values begins at bounds[rank] and ends before bounds[rank + 1]. From every rank's evenly spaced
// samples, so that ranges hold about as many runs each.
std::vector<double> range_bounds(Communicator& world, const std::vector<Run>& runs) {
  constexpr size_t kSamples = 64;
  constexpr double kNone = std::numeric_limits<double>::infinity();
  std::vector<double> samples(kSamples, kNone);
  for (size_t i = 0; i < kSamples && !runs.empty(); ++i)
    samples[i] = runs[(2 * i + 1) * runs.size() / (2 * kSamples)].value;
  samples = gather(world, samples);
  std::sort(samples.begin(), samples.end());
  samples.erase(std::find(samples.begin(), samples.end(), kNone), samples.end());
  const auto size = static_cast<size_t>(world.size());
  std::vector<double> bounds(size + 1, kNone);
  bounds[0] = -kNone;
  for (size_t rank = 1; rank < size && !samples.empty(); ++rank) bounds[rank] = samples[rank * samples.size() / size];
  return bounds;
}

// All ranks' runs in ascending order, cut into one piece per rank; no value is in two pieces.
std::vector<Run> sort_over_ranks(Communicator& world, std::vector<Run> runs) {
  runs = merge_equal(std::move(runs));
  const std::vector<double> bounds = range_bounds(world, runs);
  const auto begin_of = [&](double bound) {
    return std::lower_bound(runs.begin(), runs.end(), bound, [](const Run& run, double b) { return run.value < b; });
  };
  std::vector<int64_t> sent(static_cast<size_t>(world.size()));
  std::vector<int64_t> received(sent.size());
  for (size_t rank = 0; rank < sent.size(); ++rank) sent[rank] = begin_of(bounds[rank + 1]) - begin_of(bounds[rank]);
  world.all_to_all<int64_t>(sent, std::span(received), kPurpose);
  int64_t total = 0;
  for (const int64_t count : received) total += count;
  std::vector<Run> piece(static_cast<size_t>(total));
  world.all_to_all_v<Run>(runs, sent, std::span(piece), received, kPurpose);
  return merge_equal(std::move(piece));
}

struct Piece {
  int64_t rows = 0;
  double mass = 0;
};

constexpr std::array kShares = {0.50, 0.90, 0.99};
constexpr double kSlack = 1e-12;  // of a share: N / 2 equal slots do hold half, though sums are rounded

struct Concentration {
  double gini = 0;
  std::array<int64_t, kShares.size()> slots{};  // the fewest that hold kShares of the mass
};

// From the top of this rank's piece down, until `mass` is found; rounding may leave nothing to find beyond its end.
int64_t rows_that_hold(const std::vector<Run>& piece, double mass) {
  int64_t rows = 0;
  for (auto run = piece.rbegin(); run != piece.rend(); ++run) {
    const double needed = std::ceil(mass / run->value);
    if (needed <= static_cast<double>(run->rows)) return rows + static_cast<int64_t>(needed);
    rows += run->rows;
    mass -= run->value * static_cast<double>(run->rows);
  }
  return rows;
}

// `runs`: this rank's rows with a value > 0, all finite. The slots that no rank names have 0.
Concentration concentration(Communicator& world, std::vector<Run> runs, int64_t slots) {
  const std::vector<Run> piece = sort_over_ranks(world, std::move(runs));
  Piece mine;
  for (const Run& run : piece) {
    mine.rows += run.rows;
    mine.mass += run.value * static_cast<double>(run.rows);
  }
  const std::vector<Piece> pieces = gather(world, std::vector{mine});
  // What lies in the pieces above this one. The same additions on all ranks: pieces meet without gap or overlap.
  const auto rank = static_cast<size_t>(world.rank());
  Piece all;
  Piece above;
  for (size_t r = pieces.size(); r-- > 0;) {
    if (r == rank) above = all;
    all.rows += pieces[r].rows;
    all.mass += pieces[r].mass;
  }
  if (all.rows == 0) return {};

  // Gini = sum of (2 i - N - 1) x_i / (N sum of x), with x ascending and i from 1: a run of m rows behind i = b has
  // m x (2 b + m - N).
  Concentration part;
  int64_t below = slots - above.rows - mine.rows;
  for (const Run& run : piece) {
    part.gini += static_cast<double>(run.rows) * run.value * static_cast<double>(2 * below + run.rows - slots);
    below += run.rows;
  }
  part.gini /= static_cast<double>(slots) * all.mass;
  for (size_t i = 0; i < kShares.size(); ++i) {
    const double target = kShares[i] * (1.0 - kSlack) * all.mass;
    if (above.mass < target && target <= above.mass + mine.mass)
      part.slots[i] = above.rows + rows_that_hold(piece, target - above.mass);
  }
  Concentration result;
  for (const Concentration& other : gather(world, std::vector{part})) {
    result.gini += other.gini;
    for (size_t i = 0; i < kShares.size(); ++i) result.slots[i] += other.slots[i];
  }
  result.gini = std::max(result.gini, 0.0);
  return result;
}

template <class T>
std::vector<Run> runs_of(std::span<const T> values) {
  std::vector<Run> runs;
  for (const T value : values)
    if (value > T{0}) runs.push_back({static_cast<double>(value), 1});
  return runs;
}

}  // namespace

MemoryHealth memory_health(Communicator& world, std::span<const uint32_t> counts, std::span<const float> weights,
                           std::span<const uint8_t> top1, int64_t slots) {
  PKM_CHECK(weights.size() == counts.size() && (top1.empty() || top1.size() == counts.size()),
            "memory_health: {} counts, {} weights, {} flags", counts.size(), weights.size(), top1.size());
  const Range range("memory health");
  Sums sums;
  int64_t most = 0;
  for (const Sums& other : gather(world, std::vector{sum_rows(counts, weights, top1)})) {
    sums += other;
    most = std::max(most, other.selections);
  }
  PKM_CHECK(sums.rows == slots, "memory_health: the ranks have {} rows of {} slots", sums.rows, slots);
  MemoryHealth health;
  if (sums.selections == 0) return health;

  const auto all_slots = static_cast<double>(slots);
  const auto selections = static_cast<double>(sums.selections);
  health.usage = static_cast<double>(sums.read) / all_slots;
  health.top1_usage = static_cast<double>(sums.best) / all_slots;
  health.selections = sums.selections;
  health.hottest_shard = static_cast<double>(most) * world.size() / selections;
  health.kl_counted = kl_to_uniform(slots, sums.counted_log, selections);
  health.gini_counted = concentration(world, runs_of(counts), slots).gini;
  if (!std::isfinite(sums.weight)) {
    health.kl_weighted = health.gini_weighted = std::numeric_limits<double>::quiet_NaN();
    return health;
  }
  health.kl_weighted = kl_to_uniform(slots, sums.weighted_log, sums.weight);
  const Concentration weighted = concentration(world, runs_of(weights), slots);
  health.gini_weighted = weighted.gini;
  health.slots_50 = weighted.slots[0];
  health.slots_90 = weighted.slots[1];
  health.slots_99 = weighted.slots[2];
  return health;
}

}  // namespace pkmesh
