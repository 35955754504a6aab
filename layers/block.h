// SPDX-License-Identifier: Apache-2.0
// One transformer block, as in Vaswani et al. 2017 (post-LN) or with the norms moved to the front (pre-LN):
//   post-LN   y = norm1(x + attention(x));   z = norm2(y + feed(y));          AFTER: z + memory(z)
//   pre-LN    y = x + attention(norm1(x));   z = y + feed(norm2(y));          AFTER: z + memory(norm3(z))
// where feed is the GELU feed-forward layer, or, with REPLACE, a product-key memory.
// forward() leaves in the arena what backward() needs; both return views into the arena.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "layers/attention.h"
#include "layers/context.h"
#include "layers/dense.h"
#include "layers/dropout.h"
#include "layers/memory/memory_layer.h"
#include "layers/parameters.h"

namespace pkmesh {

struct BlockShape {
  int64_t width = 0;      // d
  int64_t heads = 0;      // divides d
  int64_t ffn_width = 0;  // inner width of the feed-forward layer
  bool pre_norm = false;
  float dropout = 0;
  float attention_dropout = 0;
};

// Keys and values of the tokens decoded so far, for one block.
struct KeyValueCache {
  View<float, 3> keys;    // (sequences, capacity, d)
  View<float, 3> values;  // (sequences, capacity, d)
};

// Multi-head causal self-attention between two projections: qkv (3d, d) and out (d, d).
class SelfAttention {
 public:
  SelfAttention(Parameters& parameters, const std::string& name, const BlockShape& shape);
  Matrix<float> forward(StepContext& context, Matrix<const float> x);
  void backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx);
  // One new token per sequence, x (sequences, d), at position positions[s]: attends to the cache and joins it.
  Matrix<float> decode(StepContext& context, Matrix<const float> x, Vector<const int32_t> positions,
                       KeyValueCache& cache);

 private:
  Dropout mask(const StepContext& context) const;

  BlockShape shape_;
  std::string name_;
  Linear qkv_;
  Linear out_;
  AttentionShape attention_;
  Matrix<float> packed_;       // (T, 3d): queries, keys, values
  Matrix<float> attended_;     // (T, d)
  Matrix<float> log_sum_exp_;  // (heads, T)
};

// out(gelu(in(x))).
class FeedForward {
 public:
  FeedForward(Parameters& parameters, const std::string& name, int64_t width, int64_t inner);
  Matrix<float> forward(StepContext& context, Matrix<const float> x);
  void backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx);

 private:
  Linear in_;
  Linear out_;
  Matrix<float> inner_;  // (T, inner), before the GELU
};

// Makes a block's memory at a place; called where its parameters belong in the order of the forward pass.
using MakeMemory = std::function<std::unique_ptr<MemoryLayer>(bool after)>;

class Block {
 public:
  // make_memory(after) gives this block's memory at that place, or null.
  Block(Parameters& parameters, const std::string& name, const BlockShape& shape, const MakeMemory& make_memory);

  // x (T, d), whole sequences one after the other -> (T, d). A block is used once per micro-batch.
  Matrix<float> forward(StepContext& context, Matrix<const float> x);
  // gradient (T, d): that of the block's output, replaced by that of its input. Parameters' gradients are added.
  void backward(StepContext& context, Matrix<float> gradient);
  // As forward() for one new token per sequence; see SelfAttention::decode.
  Matrix<float> decode(StepContext& context, Matrix<const float> x, Vector<const int32_t> positions,
                       KeyValueCache& cache);
  Share parameters() const { return parameters_; }  // its place in the store

 private:
  template <class Attend>
  Matrix<float> run(StepContext& context, Matrix<const float> x, const Attend& attend);
  Matrix<float> feed(StepContext& context, Matrix<const float> x);
  void feed_backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx);
  Dropout mask(const StepContext& context, const char* place) const;
  void drop(const StepContext& context, const char* place, Matrix<float> x) const;

  BlockShape shape_;
  std::string name_;
  Share parameters_;
  LayerNorm norm1_;
  SelfAttention attention_;
  int64_t feed_begin_;  // from here on: what runs backwards before the attention
  LayerNorm norm2_;
  std::unique_ptr<FeedForward> feed_forward_;
  std::unique_ptr<MemoryLayer> replace_;
  std::unique_ptr<LayerNorm> norm3_;  // pre-LN, before the memory after the block
  std::unique_ptr<MemoryLayer> after_;
};

}  // namespace pkmesh
