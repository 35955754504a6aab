// SPDX-License-Identifier: Apache-2.0
// One memory layer alone with what trains it: the whole step of the layer is forward(), backward() with the input's
// gradient, update() behind the gate, without clipping. As in training, rows that are read seldom move inside the
// backward pass, behind a gate of their own. Several inputs take turns, so that a step does not find the rows of
// the one before.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "launcher/bench_cost.h"
#include "launcher/bench_measure.h"
#include "launcher/options.h"
#include "optim/adam.h"

namespace pkmesh {

class LayerBench {
 public:
  static constexpr int64_t kInputs = 4;  // that take turns

  // The configuration's first memory, for train.batch * model.context tokens on each rank. Collective.
  LayerBench(const config::Config& config, Communicator& world, Device device);

  // From now on an input has only so many different tokens, which come again and again.
  void repeat_tokens(int64_t distinct);

  void forward();   // of the next input; collective, as all of these
  void backward();  // of the last forward()
  void update();    // keys, query, and rows that have not moved, by the gradients of the last backward()

  // The shape with what the last forward() selected. For the costs of a world of one.
  LookupShape lookup() const;
  int64_t dense_parameters() const { return parameters_.count(); }

  int64_t tokens() const { return tokens_; }
  Matrix<const float> input() const;
  Matrix<const float> output_gradient() const;
  MemoryLayer& layer() { return layer_; }
  ValueTable& table() { return table_; }
  RowOptimizer& rows() { return rows_; }
  Stream& stream() { return stream_; }
  Arena& arena() { return arena_; }
  StepContext context();

 private:
  void move_rows(const RowGradients& gradients, Vector<float> dweights);

  Communicator& world_;
  MemorySite site_;
  RowAdamOptions row_options_;
  int64_t tokens_;
  Stream stream_;
  Arena arena_;
  Parameters parameters_;
  ValueTable table_;
  MemoryLayer layer_;
  RowOptimizer rows_;
  Adam adam_;
  Buffer<float> inputs_;           // (kInputs, T, d)
  Buffer<float> output_gradient_;  // (T, d)
  Buffer<float> input_gradient_;   // (T, d)
  int64_t step_ = 0;
  bool rows_moved_ = false;  // in the last backward()
};

// Milliseconds, on the slowest rank.
struct LayerTimes {
  Spread forward;
  Spread backward;
  Spread update;
  Spread step;
  Spread rows;  // of the step: phases that read or write rows of the table, and what decides which
  std::vector<std::pair<std::string, Spread>> phases;  // of this rank, longest first; some contain others
};
// After a warm-up in which every input has come once: moments of the rows to come exist from then on. Collective.
LayerTimes time_layer(LayerBench& bench, Communicator& world, int repeats);
nlohmann::json to_json(const LayerTimes& times);

// Distinct sub-keys of the slots of a token's head in one half, on average over tokens, heads and halves; slots (T,
// H*k).
double mean_distinct_sub_keys(Matrix<const int32_t> slots, int64_t heads, int64_t sub_keys);
int64_t distinct_rows(Matrix<const int32_t> slots);

}  // namespace pkmesh
