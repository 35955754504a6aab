// SPDX-License-Identifier: Apache-2.0
// What a layer may use while it computes one micro-batch: where, in which memory, with whom, and at which point of the
// run.
#pragma once

#include <cstdint>

#include "comm/communicator.h"
#include "runtime/buffer.h"
#include "runtime/device.h"

namespace pkmesh {

struct StepContext {
  Stream& stream;
  Arena& arena;  // lives until the end of the step: what forward saves for backward goes here
  Communicator& world;
  int64_t sequence_length = 0;  // tokens of each of this rank's sequences, which lie one after the other
  uint64_t seed = 0;
  int64_t draw = 0;         // number of this micro-batch since the start of the run: keys the random numbers
  int64_t first_token = 0;  // index, among all ranks' tokens of this micro-batch, of this rank's first one
  bool training = true;     // dropout on, batch statistics, activations saved
};

}  // namespace pkmesh
