// SPDX-License-Identifier: Apache-2.0
// `pkmesh bench step`: does the memory cost time? The same model with its memories and with feed-forward layers in
// their place take steps in turn; then one layer's step over sizes of the table.
#include <fmt/format.h>
#include <stdlib.h>

#include <filesystem>

#include "io/config.h"
#include "io/step_line.h"
#include "io/token_file.h"
#include "launcher/bench.h"
#include "launcher/bench_layer.h"
#include "launcher/memory_plan.h"
#include "launcher/trainer.h"
#include "runtime/parallel.h"

namespace pkmesh {
namespace {

constexpr int kWarmUp = 2;

// Stands for the tokenizer that the ids would have come from.
class NoTokenizer final : public Tokenizer {
 public:
  explicit NoTokenizer(int64_t size) : size_(static_cast<int32_t>(size)) {}
  TokenizerKind kind() const override { return TokenizerKind::kByte; }
  int32_t vocabulary_size() const override { return size_; }
  int32_t separator() const override { return 0; }
  uint64_t hash() const override { return 1; }
  void encode(std::string_view, std::vector<int32_t>&) const override {}
  std::string decode(std::span<const int32_t>) const override { return {}; }
  void save(const std::string&) const override {}

 private:
  int32_t size_;
};

// Uniformly random ids, the same on every rank. The file is gone when this returns; its pages stay mapped.
Tokens random_tokens(int64_t count, int64_t vocabulary) {
  std::string folder = (std::filesystem::temp_directory_path() / "pkmesh-bench-XXXXXX").string();
  if (::mkdtemp(folder.data()) == nullptr) user_error("{}: no temporary folder can be made there; set TMPDIR", folder);
  std::vector<uint32_t> bits(static_cast<size_t>(count));
  Random(1, "bench tokens").fill_bits(0, count, bits.data());
  std::vector<int32_t> ids(bits.size());
  std::ranges::transform(bits, ids.begin(), [&](uint32_t b) { return static_cast<int32_t>(b % vocabulary); });
  TokenWriter writer(folder, "train", NoTokenizer(vocabulary), count);
  writer.append(ids, {.bytes = count, .words = 1});
  writer.finish();
  Tokens tokens = Tokens::open(folder, "train");
  std::filesystem::remove_all(folder);
  return tokens;
}

Trainer make_trainer(const config::Config& config, Communicator& world, const Tokens& tokens) {
  return Trainer(config, world, choose_device(config, world),
                 BatchSampler(tokens, config.model().context(), config.data().seed()), config.tokenizer().vocabulary());
}

double timed_step(Trainer& trainer, Communicator& world) {
  world.barrier();
  const StepFigures figures = trainer.step();
  PKM_CHECK(!figures.skipped, "step {} of the benchmark was skipped: {}", figures.step, figures.why_skipped);
  return slowest(world, figures.seconds * 1e3);
}

// Most memory of this process against the plan, on the rank that holds most. `before`: what was there already.
void report_memory(Communicator& world, const config::Config& config, const ProcessMemory& before,
                   BenchReport& report) {
  const auto peak = slowest(world, static_cast<double>(process_memory().peak));
  const auto grown = slowest(world, static_cast<double>(process_memory().peak - before.resident));
  const auto planned =
      static_cast<double>(plan_memory(config, config.tokenizer().vocabulary(), world.size()).bytes_per_rank());
  report.line(
      fmt::format("peak memory of a rank  {} with the memory, {} of it before the model; planned {}: "
                  "measured / planned {:.3f}",
                  size_text(peak), size_text(peak - grown), size_text(planned), grown / planned));
  report.figures["memory"] = {{"peak_bytes", peak}, {"grown_bytes", grown}, {"planned_bytes", planned}};
}

void report_model(const std::string& name, const Spread& ms, double tokens, double flops, BenchReport& report) {
  report.line(fmt::format("{:<22}{:>24} ms{:>12} tok/s{:>10.1f} GFLOP{:>10.1f} GFLOP/s", name, to_text(ms),
                          count_text(tokens / ms.median * 1e3), flops / 1e9, flops / ms.median * 1e-6));
  report.figures["models"].push_back(
      {{"name", name}, {"ms", to_json(ms)}, {"tokens_per_s", tokens / ms.median * 1e3}, {"flops", flops}});
}

void compare_models(Communicator& world, const config::Config& config, const BenchOptions& options,
                    BenchReport& report) {
  config::Config dense = config;
  dense.mutable_model()->clear_memory();
  const int64_t vocabulary = config.tokenizer().vocabulary();
  const int64_t context = config.model().context();
  const double tokens = static_cast<double>(config.train().batch() * context);
  const Tokens ids = random_tokens(std::max<int64_t>(1 << 18, 4 * config.train().batch() * (context + 1)), vocabulary);

  const ProcessMemory before = process_memory();
  Trainer with = make_trainer(config, world, ids);
  for (int i = 0; i < kWarmUp; ++i) timed_step(with, world);
  report_memory(world, config, before, report);
  Trainer without = make_trainer(dense, world, ids);
  for (int i = 0; i < kWarmUp; ++i) timed_step(without, world);

  std::vector<double> with_ms;
  std::vector<double> without_ms;
  std::vector<double> ratios;
  for (int i = 0; i < options.repeats; ++i) {
    with_ms.push_back(timed_step(with, world));
    without_ms.push_back(timed_step(without, world));
    ratios.push_back(without_ms.back() / with_ms.back());
  }
  const auto flops = [&](const config::Config& of) {
    return cost::step_flops(model_shape(of, vocabulary), config.train().batch());
  };
  report_model("with the memory", spread_of(with_ms), tokens, flops(config), report);
  report_model("with the FFN instead", spread_of(without_ms), tokens, flops(dense), report);
  const Spread promise = spread_of(ratios);
  report.line(fmt::format("speed with / without   {:.3f} ({:.3f}-{:.3f}), over {} pairs of steps in turn",
                          promise.median, promise.min, promise.max, options.repeats));
  report.figures["speed_with_over_without"] = to_json(promise);
}

// The layer alone over a table of n^2 rows; heads, neighbours and query norm are the paper's.
config::Config flat_config(int64_t sub_keys, const BenchOptions& options) {
  config::Config config;
  config::Model& model = *config.mutable_model();
  model.set_layers(1);
  model.set_width(static_cast<int32_t>(options.flat_width));
  model.set_context(static_cast<int32_t>(options.flat_tokens));
  config.mutable_train()->set_batch(1);
  config::Memory& memory = *model.add_memory();
  memory.add_layers(0);
  memory.set_sub_keys(static_cast<int32_t>(sub_keys));
  memory.set_neighbours(static_cast<int32_t>(std::min<int64_t>(memory.neighbours(), sub_keys)));
  memory.set_key_width(static_cast<int32_t>(options.flat_width));
  return resolve(config);
}

// Whether every host can take what the plan says, with a fifth of its free memory to spare.
bool fits(Communicator& world, const config::Config& config) {
  const int64_t ranks_per_host = (world.size() + world.hosts().count() - 1) / world.hosts().count();
  const int64_t bytes = ranks_per_host * plan_memory(config, 1, world.size()).bytes_per_rank();
  const bool here = static_cast<double>(bytes) < 0.8 * static_cast<double>(process_memory().machine_available);
  return slowest(world, here ? 0 : 1) == 0;
}

// Returns the median, or 0 if the table was left out. `first` is the median of the first table, 0 if this is it.
double time_table(Communicator& world, int64_t sub_keys, double first, const BenchOptions& options,
                  BenchReport& report) {
  const config::Config config = flat_config(sub_keys, options);
  const auto bytes = static_cast<double>(sub_keys * sub_keys * options.flat_width * 4);
  const std::string name = fmt::format("{}^2 x {}", sub_keys, options.flat_width);
  if (!fits(world, config)) {
    report.line(fmt::format("{:<18}{:>12}   left out: with its moments it does not fit in the memory that is free",
                            name, size_text(bytes)));
    return 0;
  }
  LayerBench bench(config, world, {});
  const LayerTimes times = time_layer(bench, world, options.repeats);
  const int64_t rows = distinct_rows(bench.layer().slots());
  const double ratio = first == 0 ? 1 : times.step.median / first;
  report.line(fmt::format("{:<18}{:>12}{:>12}{:>22}{:>9.2f}{:>10.2f}{:>10.2f}{:>10.2f}", name, size_text(bytes), rows,
                          to_text(times.step), ratio, times.forward.median, times.backward.median,
                          times.update.median));
  report.figures["tables"].push_back({{"sub_keys", sub_keys},
                                      {"table_bytes", bytes},
                                      {"distinct_rows", rows},
                                      {"ms", to_json(times.step)},
                                      {"forward_ms", to_json(times.forward)},
                                      {"backward_ms", to_json(times.backward)},
                                      {"update_ms", to_json(times.update)}});
  return times.step.median;
}

}  // namespace

void bench_step(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report) {
  if (config.model().memory_size() == 0)
    user_error("the configuration has no memory to measure; add one: --set model.memory.0.layers=[0]");
  report.line(
      fmt::format("{} blocks, width {}, context {}, {} sequences per step, vocabulary {}; {} rank{}, {} thread{} "
                  "each",
                  config.model().layers(), config.model().width(), config.model().context(), config.train().batch(),
                  config.tokenizer().vocabulary(), world.size(), world.size() == 1 ? "" : "s", threads(),
                  threads() == 1 ? "" : "s"));
  compare_models(world, config, options, report);
  report.line(fmt::format("\none layer's step over sizes of the table, {} tokens per rank", options.flat_tokens));
  report.line(fmt::format("{:<18}{:>12}{:>12}{:>22}{:>9}{:>10}{:>10}{:>10}", "table", "values", "rows read",
                          "ms (min-max)", "x first", "forward", "backward", "update"));
  double first = 0;
  for (const int64_t sub_keys : options.flat_sub_keys) {
    const double median = time_table(world, sub_keys, first, options, report);
    if (first == 0) first = median;
  }
}

}  // namespace pkmesh
