// SPDX-License-Identifier: Apache-2.0
#include "io/trace.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "comm/agree.h"
#include "io/file.h"
#include "runtime/check.h"
#include "runtime/log.h"

namespace pkmesh {
namespace {

constexpr std::string_view kHead = "{\"traceEvents\": [\n";
constexpr std::string_view kTail = "\n], \"displayTimeUnit\": \"ms\"}\n";

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

// How far this rank's clock is ahead of rank 0's. Ranks of a host leave barriers at different times but read one clock,
// so the lowest rank of each host measures for all of it: the median over rounds.
int64_t clock_offset_ns(Communicator& world) {
  const std::vector<int>& host_of = world.hosts().of_rank;
  const int host = host_of[static_cast<size_t>(world.rank())];
  const auto leader = static_cast<size_t>(std::find(host_of.begin(), host_of.end(), host) - host_of.begin());
  std::vector<int64_t> ahead;
  for (int round = 0; round < 9; ++round) {
    world.barrier();
    const int64_t now = now_ns();
    std::vector<int64_t> clocks(static_cast<size_t>(world.size()));
    world.all_gather(std::span(&now, 1), std::span(clocks), Purpose::kControl);
    ahead.push_back(clocks[leader] - clocks[0]);
  }
  std::nth_element(ahead.begin(), ahead.begin() + 4, ahead.end());
  return ahead[4];
}

std::string rank_path(const std::string& folder, int rank) {
  return fmt::format("{}/rank{:05}.json", folder, rank);
}

std::string metadata(std::string_view kind, int rank, const nlohmann::json& arguments) {
  return nlohmann::json{{"ph", "M"}, {"name", kind}, {"pid", rank}, {"tid", 0}, {"args", arguments}}.dump();
}

std::string microseconds(int64_t nanoseconds) {
  return fmt::format("{}{}.{:03}", nanoseconds < 0 ? "-" : "", std::abs(nanoseconds) / 1000,
                     std::abs(nanoseconds) % 1000);
}

// Copies the events of one rank's file, which are its lines but the first and the last.
void append_events(std::ifstream& in, const std::string& path, bool first, File& out) {
  std::string line;
  std::getline(in, line);
  if (line + "\n" != kHead) user_error("{}: not a trace of pkmesh; empty the folder and write it again", path);
  std::string text = first ? "" : ",\n";
  bool between = false;
  while (std::getline(in, line) && line[0] != ']') {
    if (between) text += "\n";
    between = true;
    text += line;
    if (text.size() > (1 << 20)) {
      out.append(text);
      text.clear();
    }
  }
  out.append(text);
}

void merge(const std::string& folder, int ranks, const std::string& path) {
  File out = File::create(path);
  out.append(kHead);
  std::string missing;
  bool first = true;
  for (int rank = 0; rank < ranks; ++rank) {
    std::ifstream in(rank_path(folder, rank));
    if (!in) {
      missing += fmt::format(" {}", rank);
      continue;
    }
    append_events(in, rank_path(folder, rank), first, out);
    first = false;
  }
  out.append(kTail);
  if (!missing.empty()) log_warning("{}: lacks ranks{}, whose files in {} are not on this host", path, missing, folder);
}

}  // namespace

Trace::Trace(Communicator& world, int64_t capacity)
    : rank_(world.rank()), host_(world.hosts().name_of(world.rank())), capacity_(capacity) {
  events_.reserve(static_cast<size_t>(capacity));
  const int64_t ahead = clock_offset_ns(world);
  int64_t zero = now_ns() - ahead;  // rank 0's is the one that counts
  world.broadcast(std::span(&zero, 1), 0, Purpose::kControl);
  zero_ = Clock::time_point(std::chrono::nanoseconds(zero + ahead));
}

int32_t Trace::number_of(std::string_view name) {
  const auto known = numbers_.find(name);
  if (known != numbers_.end()) return known->second;
  const auto number = static_cast<int32_t>(totals_.size());
  numbers_.emplace(name, number);
  totals_.push_back({std::string(name)});
  return number;
}

void Trace::on_range(std::string_view name, Clock::time_point begin, Clock::time_point end) {
  const auto nanoseconds = [](Clock::duration time) {
    return static_cast<int64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
  };
  const int32_t number = number_of(name);
  const int64_t length = nanoseconds(end - begin);
  RangeTotal& total = totals_[static_cast<size_t>(number)];
  ++total.count;
  total.ms += 1e-6 * static_cast<double>(length);
  if (static_cast<int64_t>(events_.size()) < capacity_)
    events_.push_back({nanoseconds(begin - zero_), length, number});
  else
    ++dropped_;
}

std::vector<RangeTotal> Trace::totals() const {
  std::vector<RangeTotal> sorted = totals_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.ms > b.ms; });
  return sorted;
}

void Trace::write(const std::string& path) const {
  File file = File::create(path);
  std::string text(kHead);
  text += metadata("process_name", rank_, {{"name", fmt::format("rank {} ({})", rank_, host_)}}) + ",\n";
  text += metadata("process_sort_index", rank_, {{"sort_index", rank_}});
  if (dropped_ > 0)
    text += ",\n" + metadata("process_labels", rank_, {{"labels", fmt::format("{} later ranges dropped", dropped_)}});
  std::vector<std::string> names;  // quoted
  for (const RangeTotal& total : totals_) names.push_back(nlohmann::json(total.name).dump());
  for (const Event& event : events_) {
    text +=
        fmt::format(",\n{{\"ph\":\"X\",\"pid\":{},\"tid\":0,\"ts\":{},\"dur\":{},\"name\":{}}}", rank_,
                    microseconds(event.begin), microseconds(event.nanoseconds), names[static_cast<size_t>(event.name)]);
    if (text.size() > (1 << 20)) {
      file.append(text);
      text.clear();
    }
  }
  text += kTail;
  file.append(text);
}

std::string write_traces(Communicator& world, const Trace& trace, const std::string& folder) {
  std::string path = folder + "/trace.json";
  agree(world, [&] {
    make_folder(folder);
    trace.write(rank_path(folder, world.rank()));
  });
  agree(world, [&] {
    if (world.rank() == 0) merge(folder, world.size(), path);
  });
  return path;
}

std::string to_table(const std::vector<RangeTotal>& totals, int64_t steps, double step_seconds, int64_t lines) {
  PKM_CHECK(steps > 0, "a profile over {} steps", steps);
  const auto per_step = 1.0 / static_cast<double>(steps);
  std::string table =
      fmt::format("{:<40} {:>10} {:>12} {:>7}\n", "range (inner ones included)", "calls/step", "ms/step", "share");
  for (const RangeTotal& total : totals) {
    if (lines-- == 0) break;
    table +=
        fmt::format("{:<40} {:>10.1f} {:>12.3f} {:>6.1f}%\n", total.name, static_cast<double>(total.count) * per_step,
                    total.ms * per_step, step_seconds > 0 ? 0.1 * total.ms * per_step / step_seconds : 0);
  }
  return table;
}

}  // namespace pkmesh
