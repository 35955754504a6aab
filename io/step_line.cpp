// SPDX-License-Identifier: Apache-2.0
#include "io/step_line.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <fstream>
#include <sstream>

namespace pkmesh {
namespace {

// Three significant digits, but all digits of the integer part.
std::string three_digits(double value) {
  const double size = std::abs(value);
  return fmt::format("{:.{}f}", value, size < 9.995 ? 2 : size < 99.95 ? 1 : 0);
}

std::string slurp(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

constexpr double kMi = 1024.0 * 1024;
constexpr double kGi = kMi * 1024;

}  // namespace

std::string duration_text(double milliseconds) {
  return milliseconds < 999.5 ? three_digits(milliseconds) + " ms" : three_digits(milliseconds / 1e3) + " s";
}

std::string count_text(double count) {
  if (count < 999.5) return fmt::format("{:.0f}", count);
  if (count < 999.5e3) return three_digits(count / 1e3) + "k";
  if (count < 999.5e6) return three_digits(count / 1e6) + "M";
  return three_digits(count / 1e9) + "G";
}

std::string bytes_text(double bytes) {
  constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1000 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{} {}", three_digits(bytes), kUnits[unit]);
}

std::string time_left_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e9) return "?";
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  return fmt::format("{}d{:02}h", s / 86400, s / 3600 % 24);
}

std::string to_string(const StepLine& line) {
  std::string text = fmt::format("step {}/{} | loss {:.4f} | gnorm {:.2f} | lr {:.2e}", line.step, line.steps,
                                 line.loss, line.grad_norm, line.learning_rate);
  if (line.loss_scale) text += fmt::format(" | scale {}", *line.loss_scale);
  text += fmt::format(" | {} | {} tok/s", duration_text(line.step_ms), count_text(line.tokens_per_s));
  const bool large = line.memory_total >= kGi;
  text += fmt::format(" | mem {:.1f}/{:.1f} {}", line.memory_used / (large ? kGi : kMi),
                      line.memory_total / (large ? kGi : kMi), large ? "GiB" : "MiB");
  if (line.exposed) text += fmt::format(" | comm {:.0f}% exposed", *line.exposed * 100);
  return text + " | eta " + time_left_text(line.seconds_left);
}

std::string to_string(const MemoryLine& line) {
  return fmt::format("memory {} | used {:.1f}% | kl {:.2f} | hottest shard {:.2f}x | {}/step", line.layer,
                     line.used * 100, line.kl, line.hottest_shard, bytes_text(line.bytes_per_step));
}

int64_t proc_bytes(std::string_view text, std::string_view key) {
  const std::string wanted = fmt::format("{}:", key);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (!line.starts_with(wanted)) continue;
    line.remove_prefix(wanted.size());
    while (!line.empty() && std::isspace(static_cast<unsigned char>(line.front())) != 0) line.remove_prefix(1);
    int64_t kibibytes = 0;
    std::from_chars(line.data(), line.data() + line.size(), kibibytes);
    return kibibytes * 1024;
  }
  return 0;
}

ProcessMemory process_memory() {
  const std::string status = slurp("/proc/self/status");
  const std::string machine = slurp("/proc/meminfo");
  return {proc_bytes(status, "VmRSS"), proc_bytes(status, "VmHWM"), proc_bytes(machine, "MemTotal"),
          proc_bytes(machine, "MemAvailable")};
}

}  // namespace pkmesh
