// SPDX-License-Identifier: Apache-2.0
#include "comm/ledger.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "comm/communicator.h"
#include "runtime/check.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

// What a rank tells the others, per purpose and then in total: doubles, so that one all-gather carries all of it.
struct Figures {
  double calls, bytes, bus_bytes, crossed, seconds;
};

Figures figures_of(const LedgerEntry& entry) {
  return {static_cast<double>(entry.calls), static_cast<double>(entry.bytes), entry.bus_bytes, entry.crossed,
          entry.seconds};
}

double ratio(double numerator, double denominator, double otherwise) {
  return denominator > 0 ? numerator / denominator : otherwise;
}

// One line from all ranks' figures of one purpose.
CommunicationLine summarize(const std::string& purpose, const std::vector<Figures>& of_ranks, double steps,
                            double step_seconds) {
  Figures sum{};
  double most_bytes = 0;
  double most_seconds = 0;
  for (const Figures& figures : of_ranks) {
    sum.calls += figures.calls;
    sum.bytes += figures.bytes;
    sum.bus_bytes += figures.bus_bytes;
    sum.crossed += figures.crossed;
    sum.seconds += figures.seconds;
    most_bytes = std::max(most_bytes, figures.bytes);
    most_seconds = std::max(most_seconds, figures.seconds);
  }
  const auto ranks = static_cast<double>(of_ranks.size());
  CommunicationLine line;
  line.purpose = purpose;
  line.calls = sum.calls / ranks / steps;
  line.bytes = sum.bytes / ranks / steps;
  line.crossed_bytes = sum.crossed / ranks / steps;
  line.wait_ms = 1e3 * sum.seconds / ranks / steps;
  line.share = ratio(sum.seconds / ranks / steps, step_seconds, 0);
  line.algbw = ratio(sum.bytes, sum.seconds, 0);
  line.busbw = ratio(sum.bus_bytes, sum.seconds, 0);
  line.bytes_imbalance = ratio(most_bytes * ranks, sum.bytes, 1);
  line.wait_imbalance = ratio(most_seconds * ranks, sum.seconds, 1);
  return line;
}

constexpr double kMiB = 1024.0 * 1024.0;

std::string to_row(const CommunicationLine& line) {
  return fmt::format("{:<18} {:>10.1f} {:>11.3f} {:>12.3f} {:>10.3f} {:>6.1f}% {:>8.2f} {:>8.2f} {:>9.2f}x {:>8.2f}x\n",
                     line.purpose, line.calls, line.bytes / kMiB, line.crossed_bytes / kMiB, line.wait_ms,
                     100 * line.share, line.algbw / 1e9, line.busbw / 1e9, line.bytes_imbalance, line.wait_imbalance);
}

nlohmann::json line_to_json(const CommunicationLine& line) {
  return {{"calls", line.calls},
          {"bytes", line.bytes},
          {"crossed_bytes", line.crossed_bytes},
          {"wait_ms", line.wait_ms},
          {"share", line.share},
          {"algbw", line.algbw},
          {"busbw", line.busbw},
          {"bytes_imbalance", line.bytes_imbalance},
          {"wait_imbalance", line.wait_imbalance}};
}

}  // namespace

const char* to_string(Purpose purpose) {
  switch (purpose) {
    case Purpose::kSelections:
      return "selections";
    case Purpose::kPartials:
      return "partials";
    case Purpose::kOutputGradients:
      return "output gradients";
    case Purpose::kWeightGradients:
      return "weight gradients";
    case Purpose::kDense:
      return "dense gradients";
    case Purpose::kParameters:
      return "parameters";
    case Purpose::kInputRows:
      return "input rows";
    case Purpose::kBatchNorm:
      return "batch norm";
    case Purpose::kGate:
      return "gate";
    case Purpose::kControl:
      return "control";
  }
  return "?";
}

LedgerEntry& LedgerEntry::operator+=(const LedgerEntry& other) {
  calls += other.calls;
  bytes += other.bytes;
  bus_bytes += other.bus_bytes;
  crossed += other.crossed;
  seconds += other.seconds;
  return *this;
}

LedgerEntry& LedgerEntry::operator-=(const LedgerEntry& other) {
  return *this += {-other.calls, -other.bytes, -other.bus_bytes, -other.crossed, -other.seconds};
}

LedgerEntry Ledger::total() const {
  LedgerEntry total;
  for (const LedgerEntry& entry : entries_) total += entry;
  return total;
}

Ledger& Ledger::operator+=(const Ledger& other) {
  for (size_t i = 0; i < entries_.size(); ++i) entries_[i] += other.entries_[i];
  return *this;
}

Ledger operator-(Ledger later, const Ledger& earlier) {
  for (size_t i = 0; i < later.entries_.size(); ++i) later.entries_[i] -= earlier.entries_[i];
  return later;
}

CommunicationReport collect(Communicator& communicator, const Ledger& ledger, int64_t steps, double step_seconds) {
  PKM_CHECK(steps > 0, "a report over {} steps", steps);
  constexpr size_t kLines = kPurposes + 1;  // and the total
  struct Sheet {
    std::array<Figures, kLines> lines;
    double step_seconds;
  };
  Sheet mine{};
  for (size_t p = 0; p < kPurposes; ++p) mine.lines[p] = figures_of(ledger[static_cast<Purpose>(p)]);
  mine.lines[kPurposes] = figures_of(ledger.total());
  mine.step_seconds = step_seconds / static_cast<double>(steps);
  std::vector<Sheet> sheets(static_cast<size_t>(communicator.size()));
  communicator.all_gather(std::span<const Sheet>(&mine, 1), std::span(sheets), Purpose::kControl);

  CommunicationReport report;
  report.ranks = communicator.size();
  report.hosts = communicator.hosts().count();
  report.steps = steps;
  for (const Sheet& sheet : sheets) report.step_seconds += sheet.step_seconds / communicator.size();
  for (size_t p = 0; p < kLines; ++p) {
    std::vector<Figures> of_ranks;
    for (const Sheet& sheet : sheets) of_ranks.push_back(sheet.lines[p]);
    const std::string name = p < kPurposes ? to_string(static_cast<Purpose>(p)) : "total";
    const auto line = summarize(name, of_ranks, static_cast<double>(steps), report.step_seconds);
    if (p == kPurposes)
      report.total = line;
    else if (line.calls > 0)
      report.lines.push_back(line);
  }
  return report;
}

std::string to_table(const CommunicationReport& report) {
  std::string table = fmt::format("communication | {} on {} | {} steps of {:.1f} ms\n", counted(report.ranks, "rank"),
                                  counted(report.hosts, "host"), report.steps, 1e3 * report.step_seconds);
  table += fmt::format("{:<18} {:>10} {:>11} {:>12} {:>10} {:>7} {:>8} {:>8} {:>10} {:>9}\n", "purpose", "calls/step",
                       "MiB/step", "cross-host", "wait ms", "share", "algbw", "busbw", "max/mean B", "max/mean t");
  for (const CommunicationLine& line : report.lines) table += to_row(line);
  table += to_row(report.total);
  return table + "MiB and ms are means over ranks, per step; bandwidths in GB/s as nccl-tests defines them.\n";
}

nlohmann::json to_json(const CommunicationReport& report) {
  nlohmann::json purposes = nlohmann::json::object();
  for (const CommunicationLine& line : report.lines) purposes[line.purpose] = line_to_json(line);
  return {{"ranks", report.ranks}, {"hosts", report.hosts},
          {"steps", report.steps}, {"step_ms", 1e3 * report.step_seconds},
          {"purposes", purposes},  {"total", line_to_json(report.total)}};
}

}  // namespace pkmesh
