// SPDX-License-Identifier: Apache-2.0
// `pkmesh bench model` and `bench step`: training steps of the configuration's model alone, and in turn with the same
// model that has feed-forward layers in the place of its memories: does a memory cost time?
#include <fmt/format.h>

#include <optional>

#include "comm/agree.h"
#include "launcher/bench.h"
#include "launcher/bench_cost.h"
#include "launcher/bench_tokens.h"
#include "launcher/memory_plan.h"
#include "launcher/trainer.h"
#include "runtime/parallel.h"
#include "runtime/process_memory.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

constexpr int kWarmUp = 2;

std::unique_ptr<Trainer> make_trainer(const config::Config& config, Communicator& world, const Tokens& tokens) {
  return std::make_unique<Trainer>(config, world, choose_device(config, world, find_gpu_seat(config, world)),
                                   BatchSampler(tokens, config.model().context(), config.data().seed()),
                                   planned_vocabulary(config));
}

void step(Trainer& trainer) {
  const StepFigures figures = trainer.step();
  PKM_CHECK(!figures.skipped, "step {} of the benchmark was skipped: {}", figures.step, figures.why_skipped);
}

// To the end of the update: a step returns when that is queued on a GPU, and when other ranks' part of it is on its
// way, and the next trainer would pay for it.
double timed_step(Trainer& trainer, Communicator& world) {
  world.barrier();
  const double ms = milliseconds([&] {
    step(trainer);
    trainer.model().stream().synchronize();
  });
  return slowest(world, ms);
}

// One after the other, as in training: each begins where the one before ended, and pays for what that left under way.
std::vector<double> timed_steps(Trainer& trainer, Communicator& world, int count) {
  std::vector<double> ms;
  world.barrier();
  step(trainer);
  for (int i = 0; i < count; ++i) ms.push_back(milliseconds([&] { step(trainer); }));
  for (double& one : ms) one = slowest(world, one);
  return ms;
}

// Most memory of this process against the plan, on the rank that holds most. `before`: what was there already.
void report_memory(Communicator& world, const config::Config& config, const ProcessMemory& before,
                   BenchReport& report) {
  const auto peak = slowest(world, static_cast<double>(process_memory().peak));
  const auto grown = slowest(world, static_cast<double>(process_memory().peak - before.resident));
  const auto planned = static_cast<double>(
      plan_memory(config, planned_vocabulary(config), world.hosts(), DeviceKind::kCpu).bytes_per_rank());
  report.line(
      fmt::format("peak memory of a rank  {} with the memory, {} of it before the model; planned {}: "
                  "measured / planned {:.3f}",
                  bytes_text(peak), bytes_text(peak - grown), bytes_text(planned), grown / planned));
  report.figures["memory"] = {{"peak_bytes", peak}, {"grown_bytes", grown}, {"planned_bytes", planned}};
}

void report_model(const std::string& name, const Spread& ms, double tokens, double flops, BenchReport& report) {
  report.line(fmt::format("{:<22}{:>24} ms{:>12} tok/s{:>10.1f} GFLOP{:>10.1f} GFLOP/s", name, to_text(ms),
                          count_text(tokens / ms.median * 1e3), flops / 1e9, flops / ms.median * 1e-6));
  report.figures["models"].push_back(
      {{"name", name}, {"ms", to_json(ms)}, {"tokens_per_s", tokens / ms.median * 1e3}, {"flops", flops}});
}

// Enough for a few steps without a sequence coming twice.
Tokens step_tokens(Communicator& world, const config::Config& config) {
  const int64_t step = int64_t{config.train().batch()} * (config.model().context() + 1);
  std::optional<Tokens> tokens;
  agree(world, [&] { tokens = random_tokens(std::max<int64_t>(1 << 18, 4 * step), planned_vocabulary(config)); });
  return std::move(*tokens);
}

double tokens_per_step(const config::Config& config) {
  return static_cast<double>(config.train().batch()) * config.model().context();
}

double flops(const config::Config& config) {
  return cost::step_flops(model_shape(config, planned_vocabulary(config)), config.train().batch());
}

void describe(const config::Config& config, const Communicator& world, BenchReport& report) {
  report.line(fmt::format("{} blocks, width {}, context {}, {} sequences per step, vocabulary {}; {}, {} each",
                          config.model().layers(), config.model().width(), config.model().context(),
                          config.train().batch(), planned_vocabulary(config), counted(world.size(), "rank"),
                          counted(threads(), "thread")));
}

// The trainer after its warm-up; the host's memory that it takes, against the plan, goes into the report.
std::unique_ptr<Trainer> warm_trainer(const config::Config& config, Communicator& world, const Tokens& tokens,
                                      BenchReport& report) {
  const ProcessMemory before = process_memory();
  auto trainer = make_trainer(config, world, tokens);
  for (int i = 0; i < kWarmUp; ++i) timed_step(*trainer, world);
  if (trainer->device().kind == DeviceKind::kCpu) report_memory(world, config, before, report);
  return trainer;
}

}  // namespace

void bench_model(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report) {
  describe(config, world, report);
  const Tokens tokens = step_tokens(world, config);
  const auto trainer = warm_trainer(config, world, tokens, report);
  const std::vector<double> ms = timed_steps(*trainer, world, options.repeats);
  report_model("a training step", spread_of(ms), tokens_per_step(config), flops(config), report);
}

void bench_step(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report) {
  describe(config, world, report);
  config::Config dense = config;
  dense.mutable_model()->clear_memory();
  const Tokens tokens = step_tokens(world, config);
  const auto with = warm_trainer(config, world, tokens, report);
  const auto without = make_trainer(dense, world, tokens);
  for (int i = 0; i < kWarmUp; ++i) timed_step(*without, world);

  std::vector<double> with_ms;
  std::vector<double> without_ms;
  std::vector<double> ratios;
  for (int i = 0; i < options.repeats; ++i) {
    with_ms.push_back(timed_step(*with, world));
    without_ms.push_back(timed_step(*without, world));
    ratios.push_back(without_ms.back() / with_ms.back());
  }
  report_model("with the memory", spread_of(with_ms), tokens_per_step(config), flops(config), report);
  report_model("with the FFN instead", spread_of(without_ms), tokens_per_step(config), flops(dense), report);
  const Spread promise = spread_of(ratios);
  report.line(fmt::format("speed with / without   {:.3f} ({:.3f}-{:.3f}), over {} pairs of steps in turn",
                          promise.median, promise.min, promise.max, options.repeats));
  report.figures["speed_with_over_without"] = to_json(promise);
}

}  // namespace pkmesh
