// SPDX-License-Identifier: Apache-2.0
// The subcommands of `pkmesh`. Each is given its options and the ranks; it returns the exit code or throws.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace pkmesh {

struct ConfigSource {
  std::string config;                  // a file, or the name of a preset
  std::vector<std::string> overrides;  // "train.steps=100"
};

struct TokenizeArguments {
  ConfigSource source;
  std::vector<std::string> inputs;
  std::string out;
  std::string tokenizer;  // a folder whose tokenizer to use; empty: one is trained
  int threads = 0;        // 0: all cores
};

struct TrainArguments {
  ConfigSource source;
  std::string out;
  std::string resume;  // empty, "auto", or a checkpoint
  bool profile = false;
  bool dry_run = false;
  int ranks = 0;  // of the dry run; 0: those of this job
  int hosts = 1;  // of the dry run, if it has ranks
  bool print_config = false;
  std::vector<std::string> command;  // the command line, for run.json
  std::string threads;               // how many threads compute, and why, for people
};

struct EvalArguments {
  std::string checkpoint;
  std::string data;       // empty: the run's validation data
  int64_t sequences = 0;  // 0: all
};

struct GenerateArguments {
  std::string checkpoint;
  std::vector<std::string> prompts;
  int64_t tokens = 100;
  double temperature = 0.8;
  double top_p = 0.95;
  uint64_t seed = 1;
};

struct BenchArguments {
  std::string name;     // one of benchmark_names()
  ConfigSource source;  // config "": the benchmark's own
  int repeats = 0;      // 0: the benchmark's own
  std::string json;     // file for the figures; empty: none
  std::string threads;  // as for training
};

int tokenize_command(Communicator& world, const TokenizeArguments& options);
int train_command(Communicator& world, const TrainArguments& options);
int eval_command(Communicator& world, const EvalArguments& options);
int generate_command(Communicator& world, const GenerateArguments& options);
int inspect_command(Communicator& world, const std::vector<std::string>& paths);
std::vector<std::string> benchmark_names();
int bench_command(Communicator& world, const BenchArguments& options);

}  // namespace pkmesh
