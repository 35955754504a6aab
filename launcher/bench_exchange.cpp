// SPDX-License-Identifier: Apache-2.0
// `pkmesh bench exchange`: one lookup over the ranks, collective by collective, beside the same bytes sent alone.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "launcher/bench.h"
#include "layers/memory/exchange.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

constexpr Purpose kTravels[] = {Purpose::kSelections, Purpose::kPartials, Purpose::kOutputGradients,
                                Purpose::kWeightGradients};

double rate(double bytes, double milliseconds) {  // GB/s
  return milliseconds > 0 ? bytes / milliseconds * 1e-6 : 0;
}

// The mean of the ranks' figures, on every rank.
double mean(Communicator& world, double figure) {
  world.all_reduce(std::span<double>(&figure, 1), Reduction::kSum, Purpose::kControl);
  return figure / world.size();
}

// What each rank hands in, cut into equal blocks; `bytes` is rounded up to whole ones.
Spread time_all_to_all(Communicator& world, int64_t bytes, int repeats) {
  const int64_t block = (bytes + 4 * world.size() - 1) / (4 * world.size());
  const std::vector<int64_t> counts(static_cast<size_t>(world.size()), block);
  const Buffer<float> in({}, block * world.size());
  const Buffer<float> out({}, block * world.size());
  return measure_together(world, repeats,
                          [&] { world.all_to_all_v<float>(in.span(), counts, out.span(), counts, Purpose::kControl); });
}

Spread time_all_reduce(Communicator& world, int64_t bytes, int repeats) {
  const Buffer<float> data({}, (bytes + 3) / 4);
  return measure_together(world, repeats,
                          [&] { world.all_reduce<float>(data.span(), Reduction::kSum, Purpose::kControl); });
}

void sweep(Communicator& world, const BenchOptions& options, BenchReport& report) {
  report.line(fmt::format("\n{:<24}{:>26}{:>8}{:>8}{:>26}{:>8}{:>8}", "message per rank", "all-to-all-v ms", "algbw",
                          "busbw", "all-reduce ms", "algbw", "busbw"));
  const double ranks = world.size();
  const double exchanged = (ranks - 1) / ranks;  // bus bytes per byte; see comm/ledger.h
  for (int64_t bytes = std::min(int64_t{1} << 16, options.largest_message); bytes <= options.largest_message;
       bytes *= 4) {
    const Spread scattered = time_all_to_all(world, bytes, options.repeats);
    const Spread reduced = time_all_reduce(world, bytes, options.repeats);
    const auto size = static_cast<double>(bytes);
    const double scatter_rate = rate(size, scattered.median);
    const double reduce_rate = rate(size, reduced.median);
    report.line(fmt::format("{:<24}{:>26}{:>8.2f}{:>8.2f}{:>26}{:>8.2f}{:>8.2f}", bytes_text(size), to_text(scattered),
                            scatter_rate, scatter_rate * exchanged, to_text(reduced), reduce_rate,
                            reduce_rate * 2 * exchanged));
    report.figures["messages"].push_back(
        {{"bytes", bytes}, {"all_to_all_v_ms", to_json(scattered)}, {"all_reduce_ms", to_json(reduced)}});
  }
}

// A lookup of uniformly random rows, forward and backward, again and again.
class Lookup {
 public:
  Lookup(Communicator& world, const MemorySite& site, int64_t tokens)
      : world_(world),
        site_(site),
        tokens_(tokens),
        table_(site.table, world, {}, 1),
        exchange_(site.shape.exchange),
        slots_({}, tokens * reads()),
        weights_({}, tokens * reads()),
        vectors_({}, 2 * tokens * site.table.width) {
    const Random random(1, "bench slots", world.rank());
    for (int64_t i = 0; i < slots_.count(); ++i)
      slots_.data()[i] = static_cast<int32_t>(random.bits(static_cast<uint64_t>(i)) % site.table.slots);
    std::ranges::fill(weights_.span(), 1.0F / static_cast<float>(site.shape.neighbours));
    Random(2, "bench vectors", world.rank()).normals(0, vectors_.count(), 1.0F, vectors_.data());
  }

  void run() {
    arena_.reset();
    table_.forget_pending();
    StepContext context{stream_, arena_, world_};
    const auto dweights = arena_.take<float>(tokens_, reads());
    exchange_.forward(context, table_, RouteTag("bench", 0, site_.table.slots), by_token(slots_), by_token(weights_),
                      vectors(0));
    exchange_.backward(context, table_, vectors(1), dweights);
  }

 private:
  int64_t reads() const { return site_.shape.heads * site_.shape.neighbours; }
  template <class T>
  Matrix<const T> by_token(const Buffer<T>& buffer) const {
    return Matrix<const T>(buffer.data(), tokens_, reads());
  }
  Matrix<float> vectors(int64_t i) const {
    return Matrix<float>(vectors_.data() + i * tokens_ * site_.table.width, tokens_, site_.table.width);
  }

  Communicator& world_;
  MemorySite site_;
  int64_t tokens_;
  Stream stream_;
  Arena arena_;
  ValueTable table_;
  Exchange exchange_;
  Buffer<int32_t> slots_;
  Buffer<float> weights_;
  Buffer<float> vectors_;  // (2, T, dv): outputs, their gradients
};

// What the repetitions of a lookup gave, on the slowest rank each time.
struct LookupTimes {
  std::vector<double> total;
  std::map<Purpose, std::vector<double>> waits;
  std::map<std::string, std::vector<double>> ranges;
  Ledger spent;  // by this rank, over all repetitions
};

LookupTimes time_lookup(Communicator& world, Lookup& lookup, int repeats) {
  LookupTimes times;
  RangeClock clock;
  lookup.run();
  world.barrier();
  clock.take();
  Ledger spent;
  for (int i = 0; i < repeats; ++i) {
    world.barrier();
    const Ledger before = world.ledger();
    const double total = milliseconds([&] { lookup.run(); });
    const Ledger step = world.ledger() - before;
    const std::map<std::string, double> ranges = clock.take();
    times.total.push_back(slowest(world, total));
    for (const Purpose purpose : kTravels) {
      spent.add(purpose, step[purpose]);
      times.waits[purpose].push_back(slowest(world, step[purpose].seconds * 1e3));
    }
    for (const char* name : {"route", "pooled gather", "combine partials", "copy rows", "weight gradients",
                             "scatter scalars", "count usage", "narrow", "widen"}) {
      const auto found = ranges.find(name);
      times.ranges[name].push_back(slowest(world, found == ranges.end() ? 0 : found->second));
    }
    clock.take();
  }
  times.spent = spent;
  return times;
}

void report_collectives(Communicator& world, const LookupTimes& times, int repeats, BenchReport& report) {
  report.line(fmt::format("\n{:<24}{:>8}{:>10}{:>24}{:>8}{:>8}   {:>24}{:>24}", "collective", "calls", "MiB",
                          "ms (min-max)", "algbw", "busbw", "alone: all-to-all-v ms", "all-reduce ms"));
  double sum_ms = 0;
  double sum_alone = 0;
  LedgerEntry all;
  for (const Purpose purpose : kTravels) {
    const LedgerEntry& entry = times.spent[purpose];
    const Spread wait = spread_of(times.waits.at(purpose));
    const double bytes = mean(world, static_cast<double>(entry.bytes)) / repeats;
    const double bus = mean(world, entry.bus_bytes) / repeats;
    const Spread scattered = time_all_to_all(world, static_cast<int64_t>(bytes), repeats);
    const Spread reduced = time_all_reduce(world, static_cast<int64_t>(bytes), repeats);
    const double calls = static_cast<double>(entry.calls) / repeats;
    report.line(fmt::format("{:<24}{:>8.0f}{:>10.2f}{:>24}{:>8.2f}{:>8.2f}   {:>24}{:>24}", to_string(purpose), calls,
                            bytes / (1 << 20), to_text(wait), rate(bytes, wait.median), rate(bus, wait.median),
                            to_text(scattered), to_text(reduced)));
    report.figures["collectives"].push_back({{"purpose", to_string(purpose)},
                                             {"calls", calls},
                                             {"bytes", bytes},
                                             {"bus_bytes", bus},
                                             {"ms", to_json(wait)},
                                             {"all_to_all_v_ms", to_json(scattered)},
                                             {"all_reduce_ms", to_json(reduced)}});
    sum_ms += wait.median;
    sum_alone += scattered.median;
    all += entry;
  }
  const double bytes = mean(world, static_cast<double>(all.bytes)) / repeats;
  const double bus = mean(world, all.bus_bytes) / repeats;
  report.line(fmt::format("{:<24}{:>8.0f}{:>10.2f}{:>24.2f}{:>8.2f}{:>8.2f}   {:>24.2f}", "total",
                          static_cast<double>(all.calls) / repeats, bytes / (1 << 20), sum_ms, rate(bytes, sum_ms),
                          rate(bus, sum_ms), sum_alone));
  const double crossed = mean(world, all.crossed) / repeats;
  if (world.hosts().count() > 1)
    report.line(fmt::format("{:<24}{:>8}{:>10.2f}", "of it to other hosts", "", crossed / (1 << 20)));
  report.figures["exchange"] = {
      {"bytes", bytes}, {"bus_bytes", bus}, {"crossed_bytes", crossed}, {"ms", sum_ms}, {"all_to_all_v_ms", sum_alone}};
}

void report_local(const LookupTimes& times, int repeats, BenchReport& report) {
  report.line(fmt::format("\n{:<24}{:>24}", "where the time goes", "ms (min-max)"));
  for (const auto& [name, samples] : times.ranges) {
    const Spread spread = spread_of(samples);
    if (spread.max == 0) continue;  // not part of a lookup in a world of one
    const std::string shown = name == "route" ? "route, waits included" : name;
    report.line(fmt::format("{:<24}{:>24}", shown, to_text(spread)));
    report.figures["ranges"].push_back({{"name", name}, {"ms", to_json(spread)}});
  }
  const Spread total = spread_of(times.total);
  report.line(fmt::format("{:<24}{:>24}   forward and backward, {} repetitions", "lookup", to_text(total), repeats));
  report.figures["lookup_ms"] = to_json(total);
}

}  // namespace

void bench_exchange(Communicator& world, const config::Config& config, const BenchOptions& options,
                    BenchReport& report) {
  const MemorySite site = first_memory(config);
  const int64_t tokens = int64_t{config.train().batch()} * config.model().context();
  report.line(fmt::format("{} on {}; a lookup of {} tokens per rank, {} selections each, rows of {}",
                          counted(world.size(), "rank"), counted(world.hosts().count(), "host"), tokens,
                          site.shape.heads * site.shape.neighbours, site.table.width));
  if (world.hosts().count() > 1) report.line("between hosts " + to_text(site.shape.exchange, world.hosts()));
  report.line("bandwidths in GB/s as nccl-tests defines them; times are those of the slowest rank");
  const bool alone = world.size() == 1;
  if (alone)
    report.line("a world of one: nothing travels, a lookup is a gather; start it with mpirun to measure an exchange");
  Lookup lookup(world, site, tokens);
  const LookupTimes times = time_lookup(world, lookup, options.repeats);
  if (!alone) report_collectives(world, times, options.repeats, report);
  report_local(times, options.repeats, report);
  if (!alone) sweep(world, options, report);
}

}  // namespace pkmesh
