// SPDX-License-Identifier: Apache-2.0
// `pkmesh inspect`: what a run, a checkpoint or a configuration is.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "comm/agree.h"
#include "io/config.h"
#include "io/report.h"
#include "launcher/commands.h"
#include "launcher/memory_plan.h"
#include "runtime/log.h"

namespace pkmesh {
namespace {

std::string describe_config(const std::string& name) {
  const config::Config config = load_config(name);
  const int64_t vocabulary = planned_vocabulary(config);
  std::string text = fmt::format("configuration {}\n\n", name);
  for (const int ranks : {1, 2, 4, 8})
    text += to_text(plan_memory(config, vocabulary, Hosts::one(ranks), planned_device(config))) + "\n";
  return text + to_text(config);
}

// Scripts learn of damage from the exit code.
void inspect_checkpoint(const std::string& path) {
  const CheckpointReport report = describe_checkpoint(path);
  print_out(report.text);
  if (report.damaged_files > 0)
    user_error("{}: {} of its files are not as they were written; use another checkpoint", path, report.damaged_files);
}

bool is_preset(const std::string& name) {
  return std::ranges::any_of(list_presets(), [&](const Preset& preset) { return preset.name == name; });
}

}  // namespace

int inspect_command(Communicator& world, const std::vector<std::string>& paths) {
  agree(world, [&] {
    if (world.rank() != 0) return;
    if (paths.size() > 1) return print_out(compare_runs(paths));
    const std::string& path = paths[0];
    std::error_code error;
    if (std::filesystem::exists(path + "/run.json", error))
      print_out(describe_run(path));
    else if (std::filesystem::is_directory(path, error))
      inspect_checkpoint(path);
    else if (std::filesystem::exists(path, error) || is_preset(path))
      print_out(describe_config(path));
    else
      user_error("{}: no run folder, checkpoint, configuration file or preset has that name", path);
  });
  return 0;
}

}  // namespace pkmesh
