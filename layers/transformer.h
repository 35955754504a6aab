// SPDX-License-Identifier: Apache-2.0
// A decoder-only language model: token and position embeddings, blocks, and the token embeddings again as output layer.
// Its capacity may sit in product-key memories, whose value tables are sharded over the ranks; everything else is
// replicated. Each rank passes its own sequences through; what crosses ranks is inside the memories (and their
// BatchNorm).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "layers/block.h"
#include "layers/memory/value_table.h"

namespace pkmesh {

// A memory layer at a place in the model.
struct MemorySite {
  int64_t layer = 0;   // block, from 0
  bool after = false;  // after the block instead of in place of its feed-forward layer
  MemoryShape shape;
  TableShape table;  // sites whose tables have one name share it
};

struct TransformerShape {
  int64_t vocabulary = 0;
  int64_t context = 0;  // longest sequence, and learned positions
  int64_t layers = 0;
  BlockShape block;
  bool embedding_norm = false;
  std::vector<MemorySite> memories;
};

class Transformer {
 public:
  // Registers its parameters (call parameters.allocate() afterwards) and makes this rank's share of the tables.
  // The table's rows are initialised by a function of `seed`, whatever the number of ranks.
  Transformer(const TransformerShape& shape, Parameters& parameters, const Communicator& world, Device device,
              uint64_t seed);

  // Cross-entropy of each token, -log p(target). Nothing is saved.
  //   inputs, targets (sequences, length <= context); losses (sequences * length), in the arena.
  Vector<float> losses(StepContext& context, Matrix<const int32_t> inputs, Matrix<const int32_t> targets);

  // The same, and the gradients of gradient_scale * (sum of the losses): dense ones added to the store, those of the
  // rows left with the tables until they are taken.
  Vector<float> losses_and_gradients(StepContext& context, Matrix<const int32_t> inputs, Matrix<const int32_t> targets,
                                     float gradient_scale);

  // Generation: logits (sequences, vocabulary), in the arena, of what follows ids (one new token per sequence) at
  // positions (each < context) after the tokens in the caches (one per block), which the new ones join.
  Matrix<float> decode(StepContext& context, Vector<const int32_t> ids, Vector<const int32_t> positions,
                       std::vector<KeyValueCache>& caches);

  const TransformerShape& shape() const { return shape_; }
  // The token embeddings, which are the store's first parameters.
  int64_t token_parameters() const { return shape_.vocabulary * shape_.block.width; }
  const std::vector<std::unique_ptr<ValueTable>>& tables() const { return tables_; }

 private:
  Matrix<float> embed(StepContext& context, Matrix<const int32_t> inputs, Vector<const int32_t> positions);
  Matrix<float> features(StepContext& context, Matrix<const int32_t> inputs, Vector<const int32_t> positions);
  static Vector<const int32_t> count_positions(StepContext& context, Matrix<const int32_t> inputs);
  Matrix<float> logits_scratch(StepContext& context, int64_t tokens) const;
  Dropout embedding_mask(const StepContext& context) const;
  ValueTable& table(const MemorySite& site, const Communicator& world, Device device, uint64_t seed);

  TransformerShape shape_;
  std::vector<std::unique_ptr<ValueTable>> tables_;
  Parameter<2> tokens_;     // (V, d)
  Parameter<2> positions_;  // (context, d)
  std::unique_ptr<LayerNorm> embedding_norm_;
  std::vector<std::unique_ptr<Block>> blocks_;
  int64_t parameters_ = 0;                  // of all
  std::vector<std::string> forward_names_;  // of the blocks' ranges
  std::vector<std::string> backward_names_;
  std::unique_ptr<LayerNorm> final_norm_;  // pre-LN only
};

}  // namespace pkmesh
