// SPDX-License-Identifier: Apache-2.0
// `pkmesh bench`: measures this machine, and the program against what the machine could do.
#include "launcher/bench.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "comm/agree.h"
#include "io/config.h"
#include "io/file.h"
#include "io/run_folder.h"
#include "launcher/commands.h"
#include "launcher/memory_plan.h"
#include "runtime/cpu.h"
#include "runtime/parallel.h"

namespace pkmesh {
namespace {

// The paper's layer on one sequence.
constexpr const char* kLayer = R"(
  model { layers: 1 width: 1024 heads: 16 context: 512
          memory { layers: 0 heads: 4 neighbours: 32 sub_keys: 512 key_width: 512 } }
  tokenizer { vocabulary: 32000 }
  train { batch: 1 })";

// A model that two cores train in seconds per step.
constexpr const char* kModel = R"(
  model { layers: 6 width: 512 heads: 8 context: 256
          memory { layers: 3 heads: 4 neighbours: 32 sub_keys: 256 key_width: 256 } }
  tokenizer { vocabulary: 16384 }
  train { batch: 8 })";

// A table of 1.07 billion values under a small model that learns at once.
constexpr const char* kBigTable = R"(
  model { layers: 2 width: 1024 heads: 16 context: 256
          memory { layers: 1 heads: 4 neighbours: 32 sub_keys: 1024 key_width: 512 } }
  tokenizer { kind: BYTE }
  data { source: BUILT_IN }
  train { batch: 8 }
  optimizer { learning_rate: 1e-3 schedule: CONSTANT warmup_steps: 0 })";

// Large enough for a GPU: what the memory's kernels do for 16,384 tokens on a million rows.
constexpr const char* kManyTokens = R"(
  model { layers: 1 width: 1024 heads: 16 context: 1024
          memory { layers: 0 heads: 4 neighbours: 32 sub_keys: 1024 key_width: 512 } }
  tokenizer { vocabulary: 32000 }
  train { batch: 16 })";

struct Benchmark {
  const char* name;
  const char* config;
  int repeats;
  void (*run)(Communicator&, const config::Config&, const BenchOptions&, BenchReport&);
};

constexpr std::array<Benchmark, 8> kBenchmarks = {{{"ops", kLayer, 9, bench_ops},
                                                   {"kernels", kManyTokens, 9, bench_kernels},
                                                   {"exchange", kLayer, 15, bench_exchange},
                                                   {"layer", kLayer, 9, bench_layer},
                                                   {"model", kModel, 7, bench_model},
                                                   {"step", kModel, 7, bench_step},
                                                   {"flat", kLayer, 9, bench_flat},
                                                   {"memory", kBigTable, 3, bench_memory}}};

const Benchmark& find(const std::string& name) {
  const auto found = std::ranges::find(kBenchmarks, name, &Benchmark::name);
  PKM_CHECK(found != kBenchmarks.end(), "no benchmark {}", name);
  return *found;
}

config::Config load(const Benchmark& benchmark, const BenchArguments& options) {
  if (!options.source.config.empty()) return load_config(options.source.config, options.source.overrides);
  return parse_config(benchmark.config, "bench " + options.name, options.source.overrides);
}

// Before minutes are spent: a folder that takes the file.
void check_writable(const std::string& path) {
  if (path.empty()) return;
  const std::string folder = std::filesystem::absolute(path).parent_path().string();
  if (::access(folder.c_str(), W_OK) != 0) user_error("{}: its folder cannot be written; choose another file", path);
}

void write_figures(const std::string& path, const std::string& name, const config::Config& config,
                   const Communicator& world, nlohmann::json figures) {
  figures["bench"] = name;
  figures["version"] = program_version();
  figures["commit"] = program_commit();
  figures["hosts"] = world.hosts().names;
  figures["ranks"] = world.size();
  figures["threads"] = threads();
  figures["cpu"] = to_string(cpu_level());
  figures["config"] = to_text(config);
  replace_text(path, figures.dump(2) + "\n");
}

}  // namespace

std::vector<std::string> benchmark_names() {
  std::vector<std::string> names;
  for (const Benchmark& benchmark : kBenchmarks) names.emplace_back(benchmark.name);
  return names;
}

MemorySite first_memory(const config::Config& config) {
  const TransformerShape shape = model_shape(config, config.tokenizer().vocabulary());
  if (shape.memories.empty())
    user_error("the configuration has no memory to measure; add one: --set model.memory.0.layers=[0]");
  return shape.memories.front();
}

int bench_command(Communicator& world, const BenchArguments& options) {
  const Benchmark& benchmark = find(options.name);
  config::Config config;
  agree(world, [&] {
    config = load(benchmark, options);
    if (world.rank() == 0) check_writable(options.json);
  });
  agree_on(world, "configuration", to_text(config));
  agree(world, [&] {
    const DeviceKind device = planned_device(config);
    check_fits(plan_memory(config, config.tokenizer().vocabulary(), world.hosts(), device), world, {device, 0});
  });
  BenchOptions bench;
  bench.repeats = options.repeats > 0 ? options.repeats : benchmark.repeats;
  BenchReport report(world.rank() == 0 ? stdout : nullptr);
  report.line(fmt::format("pkmesh {} {} bench {}: median (min-max) of {}", program_version(),
                          program_commit().substr(0, 10), options.name, bench.repeats));
  report.line(options.threads);
  benchmark.run(world, config, bench, report);
  agree(world, [&] {
    if (world.rank() == 0 && !options.json.empty())
      write_figures(options.json, options.name, config, world, report.figures);
  });
  return 0;
}

}  // namespace pkmesh
