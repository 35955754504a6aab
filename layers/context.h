// SPDX-License-Identifier: Apache-2.0
// What a layer may use while it computes one micro-batch: where, in which memory, with whom, and at which point of the
// run.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "comm/communicator.h"
#include "runtime/buffer.h"
#include "runtime/device.h"
#include "runtime/view.h"

namespace pkmesh {

class ValueTable;
struct RowGradients;

// The update of a table's rows inside its backward pass, where their gradient is complete: decides with all ranks
// whether they may move, and moves them or not. Returns whether they did; then dweights (contributions) are those of
// update_rows() (optim/sparse_adam.h). Collective.
using MoveRows = std::function<bool(const ValueTable& table, const RowGradients& gradients, Vector<float> dweights)>;

// The rows of the token embeddings that a micro-batch's inputs read, while the whole table is on its way (its values,
// which the output layer needs last) or is summed already (its gradient, of which the output layer's part is the
// first to be final).
struct InputRows {
  Vector<const int32_t> places;  // (T): of the inputs' rows
  Matrix<const float> values;    // (rows, d)
  Matrix<float> gradients;       // (rows, d): what the backward pass adds to
};

struct StepContext {
  Stream& stream;
  Arena& arena;  // lives until the end of the step: what forward saves for backward goes here
  Communicator& world;
  int64_t sequence_length = 0;  // tokens of each of this rank's sequences, which lie one after the other
  uint64_t seed = 0;
  int64_t draw = 0;         // number of this micro-batch since the start of the run: keys the random numbers
  int64_t first_token = 0;  // index, among all ranks' tokens of this micro-batch, of this rank's first one
  bool training = true;     // dropout on, batch statistics, activations saved
  // Of all ranks in this micro-batch; 0: as many on each rank as here. What all must decide alike depends on it.
  int64_t all_tokens = 0;
  MoveRows move_rows = nullptr;  // empty: rows move after the backward pass
  // Called before parameters, a range of their store, are read; empty: all are there. And when their gradients will not
  // change any more in this micro-batch: from the end of the store to its beginning; if there are input rows, those of
  // the token embeddings, which are its beginning, before all others.
  std::function<void(Share parameters)> await_parameters = nullptr;
  std::function<void(Share parameters)> gradients_final = nullptr;
  std::optional<InputRows> input_rows = {};  // none: inputs are looked up in the table itself

  void await(Share parameters) const {
    if (await_parameters) await_parameters(parameters);
  }
  void report_final(Share parameters) const {
    if (gradients_final) gradients_final(parameters);
  }
};

}  // namespace pkmesh
