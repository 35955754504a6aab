// SPDX-License-Identifier: Apache-2.0
// Before parameters move, all ranks decide together, from the same numbers, whether they may and how much their
// gradients are clipped. One small collective carries everything that the decision needs.
#pragma once

#include <cstdint>

#include "comm/communicator.h"

namespace pkmesh {

// What the gradients are multiplied by so that their norm is at most max_norm: min(1, max_norm / (norm + 1e-6)), as
// torch.nn.utils.clip_grad_norm_. max_norm 0: no clipping. `norm` must be finite.
double clip_factor(double norm, double max_norm);

// One rank's figures of a step, each summed over its micro-batches.
struct GateShare {
  double dense_squares = 0;   // of its share of the reduced dense gradients
  double values_squares = 0;  // of the gradients of the table rows that it owns
  double loss_sum = 0;        // over its tokens
  double tokens = 0;          // that count in the loss
};

// The same bits on every rank.
struct Gate {
  double dense_squares;
  double values_squares;
  double loss_sum;
  double tokens;
  // How many ranks saw an infinity or a NaN, so that a skipped step can say where it came from.
  int64_t bad_dense;
  int64_t bad_values;
  int64_t bad_loss;

  // What is asked for happens on all ranks or on none: the step, or the update of a table's rows (launcher/trainer.h).
  // A step without a token does not happen.
  bool finite_gradients() const { return bad_dense == 0 && bad_values == 0; }
  bool open() const { return bad_dense == 0 && bad_values == 0 && bad_loss == 0 && tokens > 0; }
};

// Sums the shares over all ranks: one all-reduce of 7 doubles, Purpose::kGate. A share that is not finite counts as
// bad and adds nothing to its sum.
Gate decide(Communicator& world, const GateShare& share);

}  // namespace pkmesh
