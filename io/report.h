// SPDX-License-Identifier: Apache-2.0
// What `pkmesh inspect` prints of the files that a run wrote: tables for people, from the files alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pkmesh {

// A run folder: who and where, loss, validation, speed, health of the memories, checkpoints and whether the newest is
// damaged. UserError if it is none.
std::string describe_run(const std::string& path);
// A line for each: how far it came, how well, how fast. UserError if one of them is no run.
std::string compare_runs(const std::vector<std::string>& paths);
struct CheckpointReport {
  std::string text;
  int64_t damaged_files = 0;
};
// A checkpoint (or the latest of a folder or a run): tensors by group, files and their checksums, which are all read
// for it, bytes that each of 1, 2, 4 and 8 ranks on the CPUs of a host would hold. UserError if there is none.
CheckpointReport describe_checkpoint(const std::string& path);

}  // namespace pkmesh
