// SPDX-License-Identifier: Apache-2.0
#include "io/report.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "io/checkpoint.h"
#include "io/file.h"
#include "io/metrics.h"
#include "runtime/check.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

using nlohmann::json;

// Columns as wide as their widest cell; the first to the left, numbers to the right.
class Table {
 public:
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text() const {
    std::vector<size_t> widths;
    for (const auto& row : rows_) {
      widths.resize(std::max(widths.size(), row.size()));
      for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    }
    std::string text;
    for (const auto& row : rows_) {
      std::string line;
      for (size_t i = 0; i < row.size(); ++i)
        line += i == 0 ? fmt::format("{:<{}}", row[i], widths[i]) : fmt::format("  {:>{}}", row[i], widths[i]);
      text += "  " + line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
    }
    return text;
  }

 private:
  std::vector<std::vector<std::string>> rows_;
};

// A finite number of that name, if the object has one.
std::optional<double> number(const json& object, const std::string& key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? std::optional(found->get<double>()) : std::nullopt;
}

std::string text_of(const json& object, const std::string& key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "?";
}

std::string cell(const std::optional<double>& value, const char* format) {
  return value ? fmt::format(fmt::runtime(format), *value) : "-";
}

struct RunFiles {
  json origin;              // run.json
  std::vector<json> lines;  // metrics.jsonl
};

RunFiles read_run(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path + "/run.json", error))
    user_error("{}: no run there (it has no run.json); give the folder that train --out made", path);
  RunFiles run;
  run.origin = json::parse(read_text(path + "/run.json"), nullptr, /*allow_exceptions=*/false);
  if (!run.origin.is_object()) user_error("{}/run.json: not JSON; restore the file or inspect another run", path);
  if (std::filesystem::exists(path + "/metrics.jsonl", error)) run.lines = read_metrics(path + "/metrics.jsonl");
  return run;
}

std::string describe_origin(const json& run) {
  std::vector<std::string> hosts;
  for (const json& host : run.value("hosts", json::array()))
    if (host.is_object())
      hosts.push_back(fmt::format("{} ({:.0f})", text_of(host, "name"), number(host, "ranks").value_or(0)));
  std::vector<std::string> command;
  for (const json& word : run.value("command", json::array()))
    if (word.is_string()) command.push_back(word.get<std::string>());
  const size_t resumed = run.value("resumed", json::array()).size();
  const double ranks = number(run, "ranks").value_or(0);
  return fmt::format("  started {}{} by pkmesh {} {}\n  {:.0f} rank{} on {}\n  {}\n", text_of(run, "started"),
                     resumed == 0   ? ""
                     : resumed == 1 ? ", resumed once,"
                                    : fmt::format(", resumed {} times,", resumed),
                     text_of(run, "version"), text_of(run, "commit"), ranks, ranks == 1 ? "" : "s",
                     fmt::join(hosts, ", "), fmt::join(command, " "));
}

// First, last and least of a value over the steps.
void add_course(Table& table, const std::string& name, const std::vector<std::pair<int64_t, double>>& course) {
  if (course.empty()) return;
  const auto best =
      *std::min_element(course.begin(), course.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  table.add({name, fmt::format("{:.4f}", course.front().second), fmt::format("{:.4f}", course.back().second),
             fmt::format("{:.4f}", best.second), fmt::format("{}", best.first)});
}

std::string describe_losses(const std::vector<json>& lines) {
  std::map<std::string, std::vector<std::pair<int64_t, double>>> courses;
  for (const json& line : lines) {
    const int64_t step = line["step"].get<int64_t>();
    if (const auto loss = number(line, "loss")) courses["loss"].emplace_back(step, *loss);
    const auto validation = line.find("validation");
    if (validation == line.end() || !validation->is_object()) continue;
    for (const char* key : {"loss", "perplexity"})
      if (const auto value = number(*validation, key))
        courses[fmt::format("validation {}", key)].emplace_back(step, *value);
  }
  Table table;
  table.add({"", "first", "last", "best", "at step"});
  for (const auto& [name, course] : courses) add_course(table, name, course);
  return courses.empty() ? "" : table.text() + "\n";
}

struct Speed {
  double step_ms;
  double tokens_per_s;
  size_t steps;  // of which these are the medians
};

// Of the last hundred steps: start-up and the odd checkpoint do not count.
std::optional<Speed> speed_of(const std::vector<json>& lines) {
  std::vector<double> milliseconds;
  std::vector<double> tokens;
  for (size_t i = lines.size() > 100 ? lines.size() - 100 : 0; i < lines.size(); ++i) {
    if (const auto value = number(lines[i], "step_ms")) milliseconds.push_back(*value);
    if (const auto value = number(lines[i], "tokens_per_s")) tokens.push_back(*value);
  }
  if (milliseconds.empty() || tokens.empty()) return std::nullopt;
  const auto median = [](std::vector<double>& values) {
    const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  };
  return Speed{median(milliseconds), median(tokens), milliseconds.size()};
}

std::string describe_speed(const std::vector<json>& lines) {
  const std::optional<Speed> speed = speed_of(lines);
  if (!speed) return "";
  return fmt::format("  speed: {} per step, {} tok/s (median of the last {})\n", duration_text(speed->step_ms),
                     count_text(speed->tokens_per_s), speed->steps);
}

// The last measurement of each memory layer.
std::string describe_memories(const std::vector<json>& lines) {
  const auto last = std::find_if(lines.rbegin(), lines.rend(), [](const json& line) {
    return line.contains("memory") && line["memory"].is_object() && !line["memory"].empty();
  });
  if (last == lines.rend()) return "";
  Table table;
  table.add({"memory", "used", "kl", "gini", "top-1", "hottest shard"});
  for (const auto& item : (*last)["memory"].items()) {
    const json& health = item.value();
    if (!health.is_object()) continue;
    const auto percent = [&](const char* key) {
      const auto value = number(health, key);
      return value ? fmt::format("{:.1f}%", *value * 100) : "-";
    };
    table.add({item.key(), percent("used"), cell(number(health, "kl"), "{:.2f}"),
               cell(number(health, "gini"), "{:.3f}"), percent("top1"),
               cell(number(health, "hottest_shard"), "{:.2f}x")});
  }
  return fmt::format("\n{}  (at step {})\n", table.text(), (*last)["step"].get<int64_t>());
}

std::string describe_groups(const CheckpointManifest& manifest) {
  struct Sum {
    int64_t tensors = 0;
    int64_t elements = 0;
    int64_t bytes = 0;
  };
  std::map<std::string, Sum> groups;  // by what stands before the first slash: "adam.m/..."
  for (const TensorInfo& tensor : manifest.dense) {
    const size_t slash = tensor.name.find('/');
    Sum& sum = groups[slash == std::string::npos ? "parameters" : tensor.name.substr(0, slash)];
    sum.tensors += 1;
    sum.elements += tensor.count();
    sum.bytes += tensor.bytes();
  }
  Table table;
  table.add({"", "tensors", "elements", "bytes"});
  for (const auto& [name, sum] : groups)
    table.add({name, std::to_string(sum.tensors), count_text(static_cast<double>(sum.elements)),
               bytes_text(static_cast<double>(sum.bytes))});
  for (const auto& stored : manifest.tables) {
    for (const auto& tensor : stored.tensors) {
      const int64_t elements = stored.rows * tensor.columns;
      table.add({fmt::format("{}: {} {} ({}, {})", stored.name, tensor.name, dtype_name(tensor.dtype), stored.rows,
                             tensor.columns),
                 "1", count_text(static_cast<double>(elements)),
                 bytes_text(static_cast<double>(elements * dtype_bytes(tensor.dtype)))});
    }
  }
  return table.text();
}

std::string describe_bytes_per_rank(const CheckpointManifest& manifest) {
  int64_t parameters = 0;
  int64_t moments = 0;  // of which each rank holds a part, where all share memory
  for (const TensorInfo& tensor : manifest.dense)
    (tensor.name.starts_with("adam.") ? moments : parameters) += tensor.bytes();
  Table table;
  table.add({"ranks", "dense", "rows", "bytes per rank"});
  for (const int64_t ranks : {1, 2, 4, 8}) {
    const int64_t dense = parameters + (moments + ranks - 1) / ranks;
    int64_t rows = 0;
    for (const auto& stored : manifest.tables) rows += (stored.rows + ranks - 1) / ranks * stored.row_bytes();
    table.add({std::to_string(ranks), bytes_text(static_cast<double>(dense)), bytes_text(static_cast<double>(rows)),
               bytes_text(static_cast<double>(dense + rows))});
  }
  return table.text() + "  (on the CPUs of one host; elsewhere each rank has all of the dense moments)\n";
}

CheckpointReport describe_files(const std::string& path, const CheckpointManifest& manifest) {
  CheckpointReport report;
  Table table;
  table.add({"file", "bytes", "state"});
  for (const auto& file : manifest.files) {
    const auto fault = file_fault(path, file);
    report.damaged_files += fault ? 1 : 0;
    table.add({file.name, bytes_text(static_cast<double>(file.bytes)), fault.value_or("good")});
  }
  report.text = table.text();
  return report;
}

}  // namespace

std::string compare_runs(const std::vector<std::string>& paths) {
  Table table;
  table.add({"run", "ranks", "step", "loss", "validation loss", "perplexity", "ms per step", "tok/s"});
  for (const std::string& path : paths) {
    const RunFiles run = read_run(path);
    const auto last_validation = std::find_if(run.lines.rbegin(), run.lines.rend(), [](const json& line) {
      return line.contains("validation") && line["validation"].is_object();
    });
    const json last = run.lines.empty() ? json::object() : run.lines.back();
    const json validation = last_validation == run.lines.rend() ? json::object() : (*last_validation)["validation"];
    const std::optional<Speed> speed = speed_of(run.lines);
    table.add({path, cell(number(run.origin, "ranks"), "{:.0f}"), cell(number(last, "step"), "{:.0f}"),
               cell(number(last, "loss"), "{:.4f}"), cell(number(validation, "loss"), "{:.4f}"),
               cell(number(validation, "perplexity"), "{:.2f}"), speed ? fmt::format("{:.1f}", speed->step_ms) : "-",
               speed ? count_text(speed->tokens_per_s) : "-"});
  }
  return table.text();
}

std::string describe_run(const std::string& path) {
  const auto [origin, lines] = read_run(path);
  std::string text = fmt::format("run {}\n{}", path, describe_origin(origin));
  if (lines.empty()) {
    text += "  no step done yet\n";
  } else {
    text += fmt::format("\n  {}, the last is {}\n", counted(std::ssize(lines), "step"),
                        lines.back()["step"].get<int64_t>());
    text += describe_losses(lines) + describe_speed(lines) + describe_memories(lines);
  }
  std::vector<std::string> names;
  for (const std::string& checkpoint : list_checkpoints(path + "/checkpoints"))
    names.push_back(std::filesystem::path(checkpoint).filename().string());
  text += fmt::format("\n  checkpoints: {}\n", names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", ")));
  try {
    latest_checkpoint(path + "/checkpoints");
  } catch (const UserError& error) {  // to go on from the run is refused for it
    text += fmt::format("  damaged: {}\n", error.what());
  }
  return text;
}

CheckpointReport describe_checkpoint(const std::string& path) {
  const std::string found = find_checkpoint(path);
  const CheckpointManifest manifest = read_manifest(found);
  CheckpointReport report = describe_files(found, manifest);
  report.text = fmt::format("checkpoint {}\n  step {}, written by {}, tokenizer {:016x}\n\n{}\n{}\n{}", found,
                            manifest.step, counted(manifest.ranks, "rank"), manifest.tokenizer_hash,
                            describe_groups(manifest), describe_bytes_per_rank(manifest), report.text);
  return report;
}

}  // namespace pkmesh
