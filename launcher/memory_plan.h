// SPDX-License-Identifier: Apache-2.0
// What a run will hold in memory on each rank, from its configuration alone: `pkmesh train --dry-run` prints it, and
// so does a run before its first step.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/model.h"
#include "launcher/options.h"

namespace pkmesh {

struct MemoryPlan {
  struct Line {
    std::string what;
    std::string how;    // the sum in words: "4.2 M parameters x (value, gradient, 2 moments)"
    int64_t bytes = 0;  // of the rank that holds most
    DeviceKind where = DeviceKind::kCpu;
  };
  int ranks = 1;
  bool trains = true;  // or reads a checkpoint
  std::vector<Line> lines;
  int64_t dense_parameters = 0;
  int64_t value_parameters = 0;  // of all tables, over all ranks

  int64_t bytes_per_rank() const;
  int64_t bytes_per_rank(DeviceKind where) const;  // in memory of one kind
};

// Parameters of the model without its tables' rows.
int64_t count_dense_parameters(const TransformerShape& shape);

// Of the tokens if they are there already, else what the tokenizer is to learn: a plan needs no data. UserError if what
// is there is no folder of tokens.
int64_t planned_vocabulary(const config::Config& config);

// `config` is resolved; vocabulary as the tokenizer says; `hosts` of all ranks.
MemoryPlan plan_memory(const config::Config& config, int64_t vocabulary, const Hosts& hosts, DeviceKind device);
// What `eval` and `generate` hold: a checkpoint's parameters and rows, without what training adds, and what a pass
// takes.
MemoryPlan plan_reading(const config::Config& config, int64_t vocabulary, const Hosts& hosts, DeviceKind device,
                        Reading reading);
std::string to_text(const MemoryPlan& plan);

// UserError if the memory that this job may have of this rank's host, or of its device, is less than what the ranks
// that share it plan to hold, or the address space left to this rank less than its own part. Such a run would else be
// ended by the system's killer of processes, long after its first pages were written; on a GPU by an allocation that
// fails on one rank. `shown`: whoever reads the error has the plan before him.
void check_fits(const MemoryPlan& plan, const Communicator& world, Device device, const GpuSeat& seat = {},
                bool shown = false);

}  // namespace pkmesh
