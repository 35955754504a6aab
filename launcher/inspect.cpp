// SPDX-License-Identifier: Apache-2.0
// `pkmesh inspect`: what a run, a checkpoint or a configuration is.
#include <fmt/format.h>

#include <filesystem>

#include "io/config.h"
#include "io/report.h"
#include "launcher/commands.h"
#include "launcher/memory_plan.h"

namespace pkmesh {
namespace {

std::string describe_config(const std::string& name) {
  const config::Config config = load_config(name);
  const int64_t vocabulary = planned_vocabulary(config);
  std::string text = fmt::format("configuration {}\n\n", name);
  for (const int ranks : {1, 2, 4, 8}) text += to_text(plan_memory(config, vocabulary, ranks)) + "\n";
  return text + to_text(config);
}

}  // namespace

int inspect_command(Communicator& world, const std::string& path) {
  if (world.rank() != 0) return 0;
  if (std::filesystem::exists(path + "/run.json"))
    fmt::print("{}", describe_run(path));
  else if (std::filesystem::is_directory(path))
    fmt::print("{}", describe_checkpoint(path));
  else
    fmt::print("{}", describe_config(path));
  return 0;
}

}  // namespace pkmesh
