// SPDX-License-Identifier: Apache-2.0
// `pkmesh bench flat`: a step should cost what the rows it reads cost, whatever the table's size and however often a
// row is read. One layer alone steps over one table, of which smaller and smaller shares are read by the same number of
// selections; then over tables of growing size, whose rows hardly repeat.
#include <fmt/format.h>

#include "io/config.h"
#include "launcher/bench.h"
#include "launcher/bench_layer.h"
#include "launcher/memory_plan.h"
#include "runtime/parallel.h"
#include "runtime/process_memory.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

// The layer alone over a table of n^2 rows; heads, neighbours and query norm are the paper's, keys half as wide.
config::Config layer_config(int64_t sub_keys, int64_t width, int64_t tokens) {
  config::Config config;
  config::Model& model = *config.mutable_model();
  model.set_layers(1);
  model.set_width(static_cast<int32_t>(width));
  model.set_context(static_cast<int32_t>(tokens));
  config.mutable_train()->set_batch(1);
  config::Memory& memory = *model.add_memory();
  memory.add_layers(0);
  memory.set_sub_keys(static_cast<int32_t>(sub_keys));
  memory.set_neighbours(static_cast<int32_t>(std::min<int64_t>(memory.neighbours(), sub_keys)));
  memory.set_key_width(static_cast<int32_t>(width / 2));
  return resolve(config);
}

std::string table_name(int64_t sub_keys, int64_t width) {
  return fmt::format("{}^2 x {}", sub_keys, width);
}

CeilingSizes ceiling_sizes(Communicator& world, int64_t sub_keys, const BenchOptions& options) {
  CeilingSizes sizes = options.ceilings;
  sizes.row_bytes = options.flat_width * 4;
  sizes.table_rows = sub_keys * sub_keys / world.size();
  return sizes;
}

// Whether every host can take what the plan says and what ceilings are measured in, with a fifth of its free memory to
// spare.
bool fits(Communicator& world, const config::Config& config, const CeilingSizes& ceilings) {
  const int64_t ranks_per_host = (world.size() + world.hosts().count() - 1) / world.hosts().count();
  const int64_t planned = plan_memory(config, 1, world.hosts(), DeviceKind::kCpu).bytes_per_rank();
  const int64_t bytes = ranks_per_host * (planned + ceilings.memory_bytes());
  const bool here = static_cast<double>(bytes) < 0.8 * static_cast<double>(process_memory().machine_available);
  return slowest(world, here ? 0 : 1) == 0;
}

double layer_floor(const LayerBench& bench, const Ceilings& ceilings) {
  const LookupShape lookup = bench.lookup();
  return ceilings.floor_ms(cost::layer_forward(lookup)) + ceilings.floor_ms(cost::layer_backward(lookup)) +
         ceilings.floor_ms(cost::layer_update(lookup, bench.dense_parameters()));
}

// Median of the step, and its floor; zeros if the table was left out.
struct TableFigures {
  double ms = 0;
  double floor_ms = 0;
};

TableFigures time_table(Communicator& world, int64_t sub_keys, const TableFigures& first, const BenchOptions& options,
                        BenchReport& report) {
  const config::Config config = layer_config(sub_keys, options.flat_width, options.flat_tokens);
  const auto bytes = static_cast<double>(sub_keys * sub_keys * options.flat_width * 4);
  const std::string name = table_name(sub_keys, options.flat_width);
  const CeilingSizes sizes = ceiling_sizes(world, sub_keys, options);
  if (!fits(world, config, sizes)) {
    report.line(
        fmt::format("{:<14}{:>10}   left out: with its moments, and what ceilings are measured in, it does not fit",
                    name, bytes_text(bytes)));
    return {};
  }
  Stream stream(Device{});
  world.barrier();  // each rank measures what this machine can do with a table of that size while the others do
  const Ceilings ceilings = measure_ceilings(stream, sizes, std::min(options.repeats, 5));
  LayerBench bench(config, world, {});
  const LayerTimes times = time_layer(bench, world, options.repeats);
  const int64_t rows = distinct_rows(bench.layer().slots());
  // The costs are those of a world of one; over more ranks the exchange comes on top.
  const TableFigures figures = {times.step.median, world.size() == 1 ? layer_floor(bench, ceilings) : 0};
  const TableFigures& base = first.ms == 0 ? figures : first;
  report.line(fmt::format(
      "{:<14}{:>10}{:>10}{:>22}{:>9.2f}{:>9.2f}{:>9.2f}{:>9.2f}{:>9.2f}{:>10.1f}{:>11.1f}{:>10.1f}{:>9.2f}", name,
      bytes_text(bytes), rows, to_text(times.step), times.forward.median, times.backward.median, times.update.median,
      times.rows.median, figures.ms / base.ms, ceilings.rows_read / 1e9, ceilings.rows_updated / 1e9, figures.floor_ms,
      base.floor_ms == 0 ? 0 : figures.floor_ms / base.floor_ms));
  nlohmann::json line = to_json(times);
  line.update({{"sub_keys", sub_keys},
               {"table_bytes", bytes},
               {"distinct_rows", rows},
               {"floor_ms", figures.floor_ms},
               {"ceilings", to_json(ceilings)}});
  report.figures["tables"].push_back(line);
  return figures;
}

void time_tables(Communicator& world, const BenchOptions& options, BenchReport& report) {
  report.line(
      fmt::format("\none layer's step over sizes of the table, {} tokens per rank; GB/s: random rows of a table "
                  "of that size, at best",
                  options.flat_tokens));
  report.line(fmt::format("{:<14}{:>10}{:>10}{:>22}{:>9}{:>9}{:>9}{:>9}{:>9}{:>10}{:>11}{:>10}{:>9}", "table", "values",
                          "rows read", "ms (min-max)", "forward", "backward", "update", "rows", "x first", "GB/s read",
                          "rewritten", "floor ms", "x first"));
  TableFigures first;
  for (const int64_t sub_keys : options.flat_sub_keys) {
    const TableFigures figures = time_table(world, sub_keys, first, options, report);
    if (first.ms == 0) first = figures;
  }
}

void time_curve(Communicator& world, const BenchOptions& options, BenchReport& report) {
  const config::Config config = layer_config(options.curve_sub_keys, options.curve_width, options.curve_tokens);
  const auto& memory = config.model().memory(0);
  const int64_t selections = options.curve_tokens * memory.heads() * memory.neighbours();
  report.line(fmt::format("one layer's step over how many rows are read: table {}, {} tokens per rank, {} selections",
                          table_name(options.curve_sub_keys, options.curve_width), options.curve_tokens, selections));
  report.line(fmt::format("{:<18}{:>10}{:>14}{:>22}{:>10}{:>10}{:>10}{:>10}", "different tokens", "rows read",
                          "reads per row", "ms (min-max)", "forward", "backward", "update", "rows"));
  LayerBench bench(config, world, {});
  std::vector<double> rows_read;
  std::vector<double> step_ms;
  std::vector<double> rows_ms;
  // From many to few: repeating tokens forgets those that it overwrites.
  std::vector<int64_t> counts = options.curve_distinct_tokens;
  std::ranges::sort(counts, std::greater());
  for (const int64_t distinct : counts) {
    bench.repeat_tokens(distinct);
    const LayerTimes times = time_layer(bench, world, options.repeats);
    const auto rows = static_cast<double>(distinct_rows(bench.layer().slots()));
    rows_read.push_back(rows);
    step_ms.push_back(times.step.median);
    rows_ms.push_back(times.rows.median);
    report.line(fmt::format("{:<18}{:>10.0f}{:>14.1f}{:>22}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}", distinct, rows,
                            static_cast<double>(selections) / rows, to_text(times.step), times.forward.median,
                            times.backward.median, times.update.median, times.rows.median));
    nlohmann::json line = to_json(times);
    line.update({{"distinct_tokens", distinct}, {"distinct_rows", rows}, {"selections", selections}});
    report.figures["curve"].push_back(line);
  }
  for (const auto& [name, ms] : {std::pair{"step", &step_ms}, std::pair{"rows", &rows_ms}}) {
    const Line line = fit_line(rows_read, *ms);
    report.line(fmt::format("{:<8} {:.2f} ms + {:.3f} us per row that is read; furthest point {:.0f}% off", name,
                            line.at_zero, line.slope * 1e3, line.worst * 100));
    report.figures["curve_fit"][name] = {
        {"ms_at_zero", line.at_zero}, {"ms_per_row", line.slope}, {"worst", line.worst}};
  }
}

}  // namespace

void bench_flat(Communicator& world, const config::Config&, const BenchOptions& options, BenchReport& report) {
  // Smaller tables first: what they leave behind is at once part of the next, rather than freed (see Ceilings::memory).
  time_curve(world, options, report);
  time_tables(world, options, report);
}

}  // namespace pkmesh
