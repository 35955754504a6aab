// SPDX-License-Identifier: Apache-2.0
// metrics.jsonl, the source of truth of a run: one JSON object per line, one line per step, steps ascending, each once.
// What stands in an object is the trainer's business; the report (io/report.h) and the tools read these names:
//   step            updates done after this one, from 1
//   loss            mean over the step's tokens, natural logarithm;  lr, grad_norm, step_ms, tokens_per_s
//   values_grad_norm   where rows are clipped;  loss_scale  with FP16 only;  skipped  true, of steps that were
//   validation      {loss, perplexity, ...}: only on steps that validate
//   memory          {"layer6": {used, kl, kl_counted, gini, top1, slots_50, slots_90, slots_99, hottest_shard,
//                   selections}, ...} (layers/memory/health.h): only on steps that measure it; of a single table
//                   mib_per_step as well
//   communication   {exposed}, share of the step, 0..1; with a step line also {per_step}: {"partials": {mib, ms}, ...},
//                   this rank's means since the line before
// A number that is not finite is written as null, for JSON has no other word.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "io/file.h"

namespace pkmesh {

class MetricsFile {
 public:
  // Opens or creates the file for the steps after `resume_step` (0: from the beginning). The first append() cuts off
  // lines of later steps, which a lost continuation wrote, and a torn last line. UserError if it cannot be written or
  // is no metrics file.
  MetricsFile(const std::string& path, int64_t resume_step);
  // Appends one line, at once. `values` is an object whose "step" is greater than the last line's.
  void append(const nlohmann::json& values);

 private:
  File file_;
  std::optional<int64_t> kept_;  // bytes, until the rest is cut off
  int64_t last_step_;
};

// All whole lines; a torn last line is left out. UserError if a line between is not an object with a step.
std::vector<nlohmann::json> read_metrics(const std::string& path);

}  // namespace pkmesh
