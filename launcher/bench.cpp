// SPDX-License-Identifier: Apache-2.0
// `pkmesh bench`: measures this machine, and the program against what the machine could do.
#include "launcher/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "comm/agree.h"
#include "io/config.h"
#include "io/file.h"
#include "io/run_folder.h"
#include "launcher/commands.h"
#include "launcher/memory_plan.h"
#include "launcher/options.h"
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
  const char* config;  // null: it has shapes of its own
  int repeats;
  bool alone;   // measures what one rank does
  bool memory;  // measures the configuration's first memory
  bool trains;  // on the configuration's device; others measure the CPU
  void (*run)(Communicator&, const config::Config&, const BenchOptions&, BenchReport&);
};

constexpr std::array<Benchmark, 8> kBenchmarks = {{{"ops", kLayer, 9, true, true, false, bench_ops},
                                                   {"kernels", kManyTokens, 9, true, true, true, bench_kernels},
                                                   {"exchange", kLayer, 15, false, true, false, bench_exchange},
                                                   {"layer", kLayer, 9, false, true, false, bench_layer},
                                                   {"model", kModel, 7, false, false, true, bench_model},
                                                   {"step", kModel, 7, false, true, true, bench_step},
                                                   {"flat", nullptr, 9, false, false, false, bench_flat},
                                                   {"memory", kBigTable, 3, false, false, false, bench_memory}}};

const Benchmark& find(const std::string& name) {
  const auto found = std::ranges::find(kBenchmarks, name, &Benchmark::name);
  PKM_CHECK(found != kBenchmarks.end(), "no benchmark {}", name);
  return *found;
}

config::Config load(const Benchmark& benchmark, const BenchArguments& options) {
  if (benchmark.config == nullptr) {
    if (!options.source.config.empty() || !options.source.overrides.empty())
      user_error("bench {} has shapes of its own; leave --config and --set out", benchmark.name);
    return {};
  }
  if (!options.source.config.empty()) return load_config(options.source.config, options.source.overrides);
  return parse_config(benchmark.config, "bench " + options.name, options.source.overrides);
}

// Before minutes are spent: that the figures can be written, and are not written over what is there.
void check_writable(const std::string& path) {
  std::error_code error;
  if (std::filesystem::exists(path, error)) user_error("{}: is there already; choose another file for --json", path);
  const std::string beside = path + ".tmp";
  File::create(beside);
  remove_quietly(beside);
}

void check(const Benchmark& benchmark, const config::Config& config, const Communicator& world) {
  if (benchmark.alone && world.size() > 1)
    user_error("bench {} measures what one rank computes; start it without mpirun", benchmark.name);
  if (benchmark.config == nullptr) return;
  if (!benchmark.trains && config.train().device() == config::Train::CUDA)
    user_error("bench {} measures the CPU and its memory; leave train.device out", benchmark.name);
  if (benchmark.memory) first_memory(config);  // an error if there is none
}

// An error if it is not there, or too small.
Device check_device(const Benchmark& benchmark, const config::Config& config, const Communicator& world,
                    const GpuSeat& seat) {
  const Device device = benchmark.trains ? choose_device(config, world, seat) : Device{};
  check_fits(plan_memory(config, planned_vocabulary(config), world.hosts(), device.kind), world, device, seat);
  return device;
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
  if (find(name).config != nullptr) figures["config"] = to_text(config);
  replace_text(path, figures.dump(2) + "\n");
}

}  // namespace

std::vector<std::string> benchmark_names() {
  std::vector<std::string> names;
  for (const Benchmark& benchmark : kBenchmarks) names.emplace_back(benchmark.name);
  return names;
}

MemorySite first_memory(const config::Config& config) {
  const TransformerShape shape = model_shape(config, planned_vocabulary(config));
  if (shape.memories.empty())
    user_error("the configuration has no memory to measure; add one: --set model.memory.0.layers=[0]");
  return shape.memories.front();
}

int bench_command(Communicator& world, const BenchArguments& options) {
  const Benchmark& benchmark = find(options.name);
  config::Config config;
  int64_t vocabulary = 0;  // of tokens that may be here and not there
  agree(world, [&] {
    config = load(benchmark, options);
    check(benchmark, config, world);
    if (benchmark.config != nullptr) vocabulary = planned_vocabulary(config);
    if (world.rank() == 0 && !options.json.empty()) check_writable(options.json);
  });
  const GpuSeat seat = benchmark.trains ? find_gpu_seat(config, world) : GpuSeat{};
  Device device;
  agree(world, [&] {
    if (benchmark.config != nullptr) device = check_device(benchmark, config, world, seat);
  });
  agree_on(world, "configuration", to_text(config));
  agree_on(world, "vocabulary", std::to_string(vocabulary));
  if (benchmark.trains) agree_on(world, "device", device_choice(config, device));
  BenchOptions bench;
  bench.repeats = options.repeats > 0 ? options.repeats : benchmark.repeats;
  BenchReport report(/*prints=*/world.rank() == 0);
  report.line(fmt::format("pkmesh {} {} bench {}: median (min-max) of {}", program_version(), program_commit(),
                          options.name, bench.repeats));
  report.line(options.threads);
  benchmark.run(world, config, bench, report);
  agree(world, [&] {
    if (world.rank() == 0 && !options.json.empty())
      write_figures(options.json, options.name, config, world, report.figures);
  });
  return 0;
}

}  // namespace pkmesh
