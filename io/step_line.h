// SPDX-License-Identifier: Apache-2.0
// What a run says while it trains, as pure functions, so that a test knows every character.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace pkmesh {

struct StepLine {
  int64_t step = 0;
  int64_t steps = 0;  // of the whole run
  double loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
  double step_ms = 0;
  double tokens_per_s = 0;
  double memory_used = 0;         // bytes
  double memory_total = 0;        // bytes
  std::optional<double> exposed;  // share of the step spent waiting for communication, 0..1
  double seconds_left = 0;
  std::optional<double> loss_scale;  // absent unless losses are scaled (FP16)
};

struct MemoryLine {
  std::string table;  // its name: "layer6"
  double used = 0;    // share of the slots with weight, 0..1
  double kl = 0;
  double hottest_shard = 1;              // greatest over mean of the ranks' reads
  std::optional<double> bytes_per_step;  // absent where they are not known: the ledger does not tell tables apart
};

// "step 120/20000 | loss 3.4127 | gnorm 0.82 | lr 5.98e-04 | 412 ms | 254k tok/s | mem 38.1/79.1 GiB | ..."
std::string to_string(const StepLine& line);
// "memory layer6 | used 63.2% | kl 0.91 | hottest shard 1.18x | 312 MiB/step"
std::string to_string(const MemoryLine& line);

}  // namespace pkmesh
