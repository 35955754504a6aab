// SPDX-License-Identifier: Apache-2.0
// A language model with the memory it computes in, on one rank: what training, evaluation and generation share.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/share.h"
#include "io/checkpoint.h"
#include "io/tokenizer.h"
#include "launcher/options.h"
#include "layers/memory/health.h"
#include "layers/transformer.h"

namespace pkmesh {

class Model {
 public:
  // Freshly initialised, from config.train.seed. Collective. `config` is resolved and the same on all ranks.
  Model(const config::Config& config, Communicator& world, Device device, int64_t vocabulary);

  // A context for the next micro-batch: empties the arena.
  StepContext begin(bool training);

  // Parameters, states and the tables' rows, under their names, for checkpoints.
  CheckpointContents contents();
  // How the tables were used since their counters were last emptied, one entry per table. Collective.
  std::vector<MemoryHealth> memory_health();
  void reset_usage();

  Communicator& world() { return world_; }  // takes memory of the model's device
  Stream& stream() { return stream_; }
  Arena& arena() { return arena_; }
  Parameters& parameters() { return parameters_; }
  Transformer& transformer() { return transformer_; }

 private:
  const std::unique_ptr<Communicator> device_world_;  // null on CPUs
  Communicator& world_;
  uint64_t seed_;
  Stream stream_;
  Arena arena_;
  Parameters parameters_;
  Transformer transformer_;
};

enum class Reading { kEvaluation, kGeneration };

// What `pkmesh eval` and `generate` work on. The checkpoint holds its configuration and its tokenizer.
struct LoadedModel {
  config::Config config;
  CheckpointFacts facts;
  std::string path;  // of the checkpoint
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Model> model;
};

// `path`: a checkpoint, a folder of them or a run. Collective. Optimiser state in the checkpoint is not read. UserError
// if there is not the memory for what it is read for.
LoadedModel load_model(Communicator& world, const std::string& path, Reading reading);

// Adds slices of a flat buffer as tensors named prefix + entry.name: the same on every rank.
void add_dense(CheckpointContents& contents, const std::string& prefix, const std::vector<Parameters::Entry>& entries,
               std::span<float> all);
// The same of a buffer whose shares, which are ascending and apart, the ranks have one after the other in `here`.
void add_dense_shares(CheckpointContents& contents, const std::string& prefix,
                      const std::vector<Parameters::Entry>& entries, std::span<float> here,
                      const std::vector<Share>& shares);

}  // namespace pkmesh
