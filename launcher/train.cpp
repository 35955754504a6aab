// SPDX-License-Identifier: Apache-2.0
// `pkmesh train`: checks everything before it writes anything, describes the run, then steps, reports, validates,
// saves.
#include <fmt/format.h>

#include <chrono>
#include <csignal>
#include <filesystem>

#include "comm/agree.h"
#include "io/checkpoint.h"
#include "io/config.h"
#include "io/tokenizer.h"
#include "launcher/commands.h"
#include "launcher/memory_plan.h"
#include "launcher/training_run.h"
#include "runtime/log.h"

namespace pkmesh {
namespace {

// SIGTERM and SIGUSR1 (what schedulers send before the end) ask for a checkpoint and an orderly exit.
volatile std::sig_atomic_t g_stop_requested = 0;

// One rank may be told before the others: all stop after the same step.
bool stop_agreed(Communicator& world) {
  int32_t requested = g_stop_requested;
  world.all_reduce(std::span<int32_t>(&requested, 1), Reduction::kMax, Purpose::kControl);
  return requested != 0;
}

// What --config says; a run that goes on has its own, a checkpoint its run's.
std::string config_name(const TrainArguments& options) {
  if (!options.source.config.empty()) return options.source.config;
  if (options.resume.empty())
    user_error("train needs a configuration: --config with a file or a preset, such as quickstart");
  if (options.resume == "auto" && options.out.empty())
    user_error("train --resume auto needs the run folder to go on with: --out FOLDER");
  return (options.resume == "auto" ? options.out : find_checkpoint(options.resume)) + "/config.textproto";
}

// A run that goes on names its tokens, and they may have moved since.
void check_folders(const config::Data& data) {
  if (data.source() != config::Data::FOLDER) return;
  for (const auto& [option, folder] : {std::pair("data.train", data.train()), {"data.valid", data.valid()}}) {
    std::error_code error;
    if (folder.empty() || std::filesystem::is_directory(folder, error)) continue;
    user_error("{}: {}; pass the folder that `pkmesh tokenize` wrote: --set {}=FOLDER", folder,
               error ? error.message() : "not a folder", option);
  }
}

// For this job, and whether this host has the device and the memory for it; or of ranks that are elsewhere.
std::string describe_plan(const config::Config& config, const Communicator& world, const GpuSeat& seat,
                          const TrainArguments& options) {
  const bool elsewhere = options.ranks > 0;
  if (elsewhere && options.hosts > options.ranks)
    user_error("--hosts {}: {} ranks are on as many hosts at most", options.hosts, options.ranks);
  const Hosts hosts = elsewhere ? Hosts::even(options.ranks, options.hosts) : world.hosts();
  const MemoryPlan plan = plan_memory(config, planned_vocabulary(config), hosts, planned_device(config));
  if (elsewhere) {
    const std::string& tokens = config.data().train();
    std::error_code error;
    if (tokens.empty() || std::filesystem::exists(tokens, error)) return to_text(plan);
    return fmt::format("{}{}: is not here; planned with tokenizer.vocabulary\n", to_text(plan), tokens);
  }
  try {
    check_folders(config.data());
    if (!config.data().train().empty()) load_tokenizer(config.data().train());
    check_fits(plan, world, choose_device(config, world, seat), seat, /*shown=*/true);
    return to_text(plan);
  } catch (const UserError& error) {
    return fmt::format("{}would not start here: {}\n", to_text(plan), error.what());
  }
}

bool due(int64_t step, int64_t every) {
  return every > 0 && step % every == 0;
}

void train(TrainingRun& run, Communicator& world) {
  const config::Train& plan = run.config().train();
  bool stopped = false;
  while (run.steps_done() < plan.steps() && !stopped) {
    run.step();
    const int64_t step = run.steps_done();
    stopped = stop_agreed(world);
    const bool last = step == plan.steps();
    if (plan.memory_every() > 0 && (due(step, plan.memory_every()) || last)) run.report_memory();
    // A scheduler leaves seconds between its signal and the end: they are for saving.
    if ((due(step, plan.eval_every()) || last) && !stopped) stopped = !run.validate([&] { return stop_agreed(world); });
    run.end_step();
    if (due(step, plan.checkpoint_every()) || last || stopped) run.save(/*at_the_end=*/last || stopped);
  }
  if (stopped)
    log_info(
        "stopped by a signal after step {}; {}", run.steps_done(),
        run.steps_done() < plan.steps() ? "go on with --resume auto" : "it was the last: pkmesh eval validates it");
}

}  // namespace

int train_command(Communicator& world, const TrainArguments& options) {
  config::Config config;
  agree(world, [&] { config = load_config(config_name(options), options.source.overrides); });
  agree_on(world, "configuration", to_text(config));
  if (options.print_config || options.dry_run) {
    const bool here = options.dry_run && options.ranks == 0;
    const GpuSeat seat = here ? find_gpu_seat(config, world) : GpuSeat{};
    agree(world, [&] {
      if (world.rank() != 0) return;
      print_out(options.print_config ? to_text(config) : describe_plan(config, world, seat, options));
    });
    return 0;
  }
  agree(world, [&] { check_folders(config.data()); });
  if (world.size() > 1)
    world.watch(std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double, std::ratio<60>>(config.train().hang_minutes())));
  std::signal(SIGTERM, [](int) { g_stop_requested = 1; });
  std::signal(SIGUSR1, [](int) { g_stop_requested = 1; });
  std::signal(SIGPIPE, SIG_IGN);  // who reads the lines may go: the run, and train.log, go on
  TrainingRun run(world, config, options);
  run.describe();
  train(run, world);
  run.finish();
  return 0;
}

}  // namespace pkmesh
