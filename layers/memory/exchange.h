// SPDX-License-Identifier: Apache-2.0
// How the rows that tokens selected become the tokens' outputs when the rows live on other ranks, and how the gradients
// find their way back. What travels:
//
//   forward    (row, weight) to the owners; one partial sum per (token, owner) back.
//   backward   the output gradient once per (token, owner) to the owners; one scalar per selection back. Row gradients
//              stay with the owner.
//
// In a world of one it is a plain weighted gather: nothing is copied, nothing sorted.
#pragma once

#include <span>
#include <vector>

#include "comm/route.h"
#include "layers/context.h"
#include "layers/memory/value_table.h"

namespace pkmesh {

// The exchange of one memory layer. forward() and backward() are collective; one backward() at most belongs to each
// forward(), in the same micro-batch.
class Exchange {
 public:
  // out (T, dv) = per token the sum of weights (T, S) * rows slots (T, S) of the table. Counts the slots' usage.
  void forward(StepContext& context, ValueTable& table, const RouteTag& tag, Matrix<const int32_t> slots,
               Matrix<const float> weights, Matrix<float> out);
  // dweights (T, S) from dout (T, dv). The gradient of the rows joins what is pending in the table.
  void backward(StepContext& context, ValueTable& table, Matrix<const float> dout, Matrix<float> dweights);

  // Of the last forward(); its arrays live in that step's arena.
  const Route& route() const { return route_; }

 private:
  void send_gradients(StepContext& context, Matrix<const float> dout, Matrix<float> gradients);

  Route route_;
  RouteCounts counts_;
  std::vector<int64_t> in_counts_;  // of floats, for a collective
  std::vector<int64_t> out_counts_;
};

}  // namespace pkmesh
