// SPDX-License-Identifier: Apache-2.0
#include "io/metrics.h"

#include <filesystem>
#include <functional>
#include <string_view>
#include <utility>

#include "runtime/check.h"

namespace pkmesh {
namespace {

using nlohmann::json;

// Calls take(line, bytes up to its beginning) for each whole line in order, until it returns false. A last line that a
// crash tore is passed over. Returns the bytes up to where it stopped.
size_t for_each_line(const std::string& path, const std::string& text, const std::function<bool(json&&)>& take) {
  size_t begin = 0;
  for (int64_t number = 1; begin < text.size(); ++number) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) return begin;
    json line = json::parse(text.begin() + static_cast<ptrdiff_t>(begin), text.begin() + static_cast<ptrdiff_t>(end),
                            nullptr, /*allow_exceptions=*/false);
    if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer()) {
      if (end + 1 == text.size()) return begin;
      user_error("{}:{}: not an object with a step; move this file away or mend the line", path, number);
    }
    if (!take(std::move(line))) return begin;
    begin = end + 1;
  }
  return begin;
}

int64_t kept_bytes(const std::string& path, int64_t resume_step) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return 0;
  return static_cast<int64_t>(for_each_line(
      path, read_text(path), [&](const json& line) { return line["step"].get<int64_t>() <= resume_step; }));
}

}  // namespace

MetricsFile::MetricsFile(const std::string& path, int64_t resume_step)
    : file_(File::open_for_appending(path)), kept_(kept_bytes(path, resume_step)), last_step_(resume_step) {}

void MetricsFile::append(const json& values) {
  const int64_t step = values.at("step").get<int64_t>();
  PKM_CHECK(step > last_step_, "metrics of step {} after those of step {}", step, last_step_);
  if (kept_) file_.truncate(*std::exchange(kept_, std::nullopt));
  file_.append(values.dump() + "\n");
  last_step_ = step;
}

std::vector<json> read_metrics(const std::string& path) {
  std::vector<json> lines;
  for_each_line(path, read_text(path), [&](json&& line) {
    lines.push_back(std::move(line));
    return true;
  });
  return lines;
}

}  // namespace pkmesh
