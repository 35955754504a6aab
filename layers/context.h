// SPDX-License-Identifier: Apache-2.0
// What a layer may use while it computes one micro-batch: where, in which memory, with whom, and at which point of the
// run.
#pragma once

#include <cstdint>
#include <functional>

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
};

}  // namespace pkmesh
