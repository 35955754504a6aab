// SPDX-License-Identifier: Apache-2.0
// The benchmarks behind `pkmesh bench`. Each takes its shapes from a configuration, prints as it goes and leaves its
// figures in the report. docs/benchmarks.md says how to read them.
#pragma once

#include "io/config.pb.h"
#include "launcher/bench_machine.h"
#include "launcher/bench_measure.h"

namespace pkmesh {

struct BenchOptions {
  int repeats = 9;
  CeilingSizes ceilings;                                   // table_rows and row_bytes follow from the configuration
  int64_t largest_message = int64_t{64} << 20;             // bytes, of `exchange`
  std::vector<int64_t> flat_sub_keys = {512, 1024, 2048};  // tables of `step`: n of each
  int64_t flat_width = 256;
  int64_t flat_tokens = 512;
};

// Each phase of a step against its floor. A world of one; UserError otherwise.
void bench_ops(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report);
// One lookup over the ranks, collective by collective, against the same sizes alone. Collective.
void bench_exchange(Communicator& world, const config::Config& config, const BenchOptions& options,
                    BenchReport& report);
// Training steps with the memory and without, in turn; then the layer's step over sizes of the table. Collective.
void bench_step(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report);

}  // namespace pkmesh
