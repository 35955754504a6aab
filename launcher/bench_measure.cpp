// SPDX-License-Identifier: Apache-2.0
#include "launcher/bench_measure.h"

#include <fmt/format.h>

#include "runtime/check.h"

namespace pkmesh {
namespace {

std::string digits(double milliseconds) {
  if (milliseconds >= 100) return fmt::format("{:.0f}", milliseconds);
  if (milliseconds >= 10) return fmt::format("{:.1f}", milliseconds);
  if (milliseconds >= 1) return fmt::format("{:.2f}", milliseconds);
  return fmt::format("{:.3f}", milliseconds);
}

}  // namespace

Spread spread_of(std::vector<double> samples) {
  PKM_CHECK(!samples.empty(), "no sample was taken");
  std::ranges::sort(samples);
  const size_t middle = samples.size() / 2;
  const double median = samples.size() % 2 == 1 ? samples[middle] : (samples[middle - 1] + samples[middle]) / 2;
  return {median, samples.front(), samples.back()};
}

nlohmann::json to_json(const Spread& spread) {
  return {{"median", spread.median}, {"min", spread.min}, {"max", spread.max}};
}

double slowest(Communicator& world, double figure) {
  world.all_reduce(std::span<double>(&figure, 1), Reduction::kMax, Purpose::kControl);
  return figure;
}

void BenchReport::line(const std::string& text) {
  text_ += text + "\n";
  if (out_ == nullptr) return;
  fmt::print(out_, "{}\n", text);
  std::fflush(out_);
}

std::string to_text(const Spread& milliseconds) {
  return fmt::format("{} ({}-{})", digits(milliseconds.median), digits(milliseconds.min), digits(milliseconds.max));
}

std::string size_text(double bytes) {
  if (bytes >= 1 << 30) return fmt::format("{:.1f} GiB", bytes / (1 << 30));
  if (bytes >= 1 << 20) return fmt::format("{:.1f} MiB", bytes / (1 << 20));
  if (bytes >= 1 << 10) return fmt::format("{:.1f} KiB", bytes / (1 << 10));
  return fmt::format("{:.0f} B", bytes);
}

}  // namespace pkmesh
