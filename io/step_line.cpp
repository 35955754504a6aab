// SPDX-License-Identifier: Apache-2.0
#include "io/step_line.h"

#include <fmt/core.h>

#include "runtime/text.h"

namespace pkmesh {
namespace {

constexpr double kMi = 1024.0 * 1024;
constexpr double kGi = kMi * 1024;

}  // namespace

std::string to_string(const StepLine& line) {
  std::string text = fmt::format("step {}/{} | loss {:.4f} | gnorm {:.2f} | lr {:.2e}", line.step, line.steps,
                                 unsigned_nan(line.loss), unsigned_nan(line.grad_norm), line.learning_rate);
  if (line.loss_scale) text += fmt::format(" | scale {}", *line.loss_scale);
  text += fmt::format(" | {} | {} tok/s", duration_text(line.step_ms), count_text(line.tokens_per_s));
  const bool large = line.memory_total >= kGi;
  text += fmt::format(" | mem {:.1f}/{:.1f} {}", line.memory_used / (large ? kGi : kMi),
                      line.memory_total / (large ? kGi : kMi), large ? "GiB" : "MiB");
  if (line.exposed) text += fmt::format(" | comm {:.0f}% exposed", *line.exposed * 100);
  return text + " | eta " + time_left_text(line.seconds_left);
}

std::string to_string(const MemoryLine& line) {
  const std::string sent = line.bytes_per_step ? fmt::format(" | {}/step", bytes_text(*line.bytes_per_step)) : "";
  return fmt::format("memory {} | used {:.1f}% | kl {:.2f} | hottest shard {:.2f}x{}", line.table, line.used * 100,
                     line.kl, line.hottest_shard, sent);
}

}  // namespace pkmesh
