// SPDX-License-Identifier: Apache-2.0
// How the rows that tokens selected become the tokens' outputs when the rows live on other ranks, and how the gradients
// find their way back. The kinds differ in what travels; they compute the same sums.
//
//   POOLED   (row, weight) to the owners; one partial sum per (token, owner) back. Backward: the output gradient once
//            per (token, owner), one scalar per selection back. Row gradients stay with the owner.
//
// In a world of one every kind is a plain weighted gather: nothing is copied, nothing sorted.
#pragma once

#include <memory>

#include "comm/route.h"
#include "layers/context.h"
#include "layers/memory/value_table.h"

namespace pkmesh {

enum class ExchangeKind { kAuto, kPooled };

// The exchange of one memory layer. forward() and backward() are collective; one backward() at most belongs to each
// forward(), in the same micro-batch.
class Exchange {
 public:
  virtual ~Exchange() = default;
  Exchange() = default;
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // out (T, dv) = per token the sum of weights (T, S) * rows slots (T, S) of the table. Counts the slots' usage.
  virtual void forward(StepContext& context, ValueTable& table, const RouteTag& tag, Matrix<const int32_t> slots,
                       Matrix<const float> weights, Matrix<float> out) = 0;
  // dweights (T, S) from dout (T, dv). The gradient of the rows joins what is pending in the table.
  virtual void backward(StepContext& context, ValueTable& table, Matrix<const float> dout, Matrix<float> dweights) = 0;

  // Of the last forward(); its arrays live in that step's arena.
  const Route& route() const { return route_; }

 protected:
  Route route_;
  RouteCounts counts_;
};

std::unique_ptr<Exchange> make_exchange(ExchangeKind kind);

}  // namespace pkmesh
