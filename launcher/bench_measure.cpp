// SPDX-License-Identifier: Apache-2.0
#include "launcher/bench_measure.h"

#include <fmt/format.h>

#include <numeric>

#include "runtime/check.h"
#include "runtime/log.h"

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

Line fit_line(const std::vector<double>& x, const std::vector<double>& y) {
  PKM_CHECK(x.size() == y.size() && x.size() >= 2, "a line through {} and {} figures", x.size(), y.size());
  const auto count = static_cast<double>(x.size());
  const double mean_x = std::accumulate(x.begin(), x.end(), 0.0) / count;
  const double mean_y = std::accumulate(y.begin(), y.end(), 0.0) / count;
  double xx = 0;
  double xy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xx += (x[i] - mean_x) * (x[i] - mean_x);
    xy += (x[i] - mean_x) * (y[i] - mean_y);
  }
  PKM_CHECK(xx > 0, "a line needs two different x");
  Line line = {mean_y - xy / xx * mean_x, xy / xx, 0};
  for (size_t i = 0; i < x.size(); ++i)
    line.worst = std::max(line.worst, std::abs(line.at_zero + line.slope * x[i] - y[i]) / y[i]);
  return line;
}

double slowest(Communicator& world, double figure) {
  world.all_reduce(std::span<double>(&figure, 1), Reduction::kMax, Purpose::kControl);
  return figure;
}

void BenchReport::line(const std::string& text) {
  text_ += text + "\n";
  if (!prints_) return;
  print_out(text + "\n");
  flush_out();
}

std::string to_text(const Spread& milliseconds) {
  return fmt::format("{} ({}-{})", digits(milliseconds.median), digits(milliseconds.min), digits(milliseconds.max));
}

}  // namespace pkmesh
