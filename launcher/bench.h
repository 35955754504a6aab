// SPDX-License-Identifier: Apache-2.0
// The benchmarks behind `pkmesh bench`. Each takes its shapes from a configuration, prints as it goes and leaves its
// figures in the report. docs/benchmarks.md says how to read them.
#pragma once

#include "io/config.pb.h"
#include "launcher/bench_machine.h"
#include "launcher/bench_measure.h"
#include "launcher/options.h"

namespace pkmesh {

struct BenchOptions {
  int repeats = 9;
  CeilingSizes ceilings;                                   // table_rows and row_bytes follow from the configuration
  int64_t largest_message = int64_t{64} << 20;             // bytes, of `exchange`
  std::vector<int64_t> flat_sub_keys = {512, 1024, 2048};  // tables of `flat`: n of each
  int64_t flat_width = 256;
  int64_t flat_tokens = 512;
  // The curve of `flat`: one table, the same number of tokens, of which so many differ.
  int64_t curve_sub_keys = 256;
  int64_t curve_width = 1024;
  int64_t curve_tokens = 2048;
  std::vector<int64_t> curve_distinct_tokens = {8, 32, 128, 256, 512, 1024, 2048};
};

// The model's first memory, the one that is measured: rows are made for it alone, whatever other layers share them.
// UserError if there is none.
MemorySite first_memory(const config::Config& config);

// bench_command() has checked what each needs: a world of one, a memory in the configuration, its device.

// Each phase of a step against its floor. A world of one.
void bench_ops(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report);
// One lookup over the ranks, collective by collective, against the same sizes alone. Collective.
void bench_exchange(Communicator& world, const config::Config& config, const BenchOptions& options,
                    BenchReport& report);
// One step of the configuration's first memory layer as a whole. Collective.
void bench_layer(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report);
// Training steps of the model. Collective, as all that follow.
void bench_model(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report);
// Training steps of the model with its memories and without, in turn.
void bench_step(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report);
// The layer's step over how many of a table's rows are read, then over sizes of the table. Takes no shape but
// `options`'.
void bench_flat(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report);
// What a training run holds in memory against its plan.
void bench_memory(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report);

// The memory's kernels alone, on the configuration's device, against its copy bandwidth. A world of one.
void bench_kernels(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report);

}  // namespace pkmesh
