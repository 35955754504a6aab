// SPDX-License-Identifier: Apache-2.0
#include "runtime/between_ops.h"

#include "runtime/parallel.h"

namespace pkmesh {
namespace {

thread_local BetweenOps* t_between_ops = nullptr;

}  // namespace

void set_between_ops(BetweenOps* who) {
  t_between_ops = who;
}

void end_op() {
  if (t_between_ops != nullptr && !in_parallel()) t_between_ops->turn();
}

}  // namespace pkmesh
