// SPDX-License-Identifier: Apache-2.0
// Between two ops of a thread somebody may have a turn: what moves only while it is looked after, such as messages of
// MPI, then goes on beside the computation without a thread of its own.
#pragma once

namespace pkmesh {

class BetweenOps {
 public:
  virtual void turn() = 0;  // does what can be done at once; may throw

 protected:
  ~BetweenOps() = default;
};

// From now on `who` has a turn whenever this thread ends an op, outside of parallel loops. Null: nobody has.
void set_between_ops(BetweenOps* who);

// An op on the CPU is over, or a part of a long one: dispatch() says so, and kernels may.
void end_op();

}  // namespace pkmesh
