// SPDX-License-Identifier: Apache-2.0
// How the rows that tokens selected become the tokens' outputs when the rows live on other ranks, and how the gradients
// find their way back. What travels:
//
//   forward    (row, weight) to the owners; one partial sum per (token, owner) back.
//   backward   the output gradient once per (token, owner) to the owners; one scalar per selection back. Row gradients
//              stay with the owner.
//
// Across hosts a lookup may go in two legs, to a rank of the owner's host and from there to the owner: then what comes
// from a host's owners is added up there, and partial sums and output gradients cross the network once per (token,
// host). In a world of one it is a plain weighted gather: nothing is copied, nothing sorted.
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "comm/route.h"
#include "layers/context.h"
#include "layers/memory/value_table.h"

namespace pkmesh {

struct ExchangeOptions {
  bool pooled = false;  // one leg, a vector per (token, owner), even where two are possible
  bool bf16 = false;    // for vectors on the leg that crosses hosts, if there are several
};
// Whether lookups go in two legs: among several hosts of several ranks, if Leg::to_hosts() can stand on them.
bool in_two_legs(const ExchangeOptions& options, const Hosts& hosts);
// The same for people: "a vector per token and host" or "... and owner", and in which type.
std::string to_text(const ExchangeOptions& options, const Hosts& hosts);

// The exchange of one memory layer. forward() and backward() are collective; one backward() at most belongs to each
// forward(), in the same micro-batch.
class Exchange {
 public:
  explicit Exchange(const ExchangeOptions& options) : options_(options) {}

  // out (T, dv) = per token the sum of weights (T, S) * rows slots (T, S) of the table. Counts the slots' usage.
  void forward(StepContext& context, ValueTable& table, const RouteTag& tag, Matrix<const int32_t> slots,
               Matrix<const float> weights, Matrix<float> out);
  // dweights (T, S) from dout (T, dv). The gradient of the rows joins what is pending in the table.
  void backward(StepContext& context, ValueTable& table, Matrix<const float> dout, Matrix<float> dweights);

  // By which the owners were reached in the last forward(); its arrays live in that step's arena.
  const Route& route() const { return routes_[legs_ - 1]; }

 private:
  void plan(StepContext& context, const Placement& placement, const RouteTag& tag, const Asked& asked);
  // Along one leg, backwards or forwards. From sums (pairs received, dv) to out (tokens, dv):
  void send_sums(StepContext& context, size_t leg, Matrix<const float> sums, Matrix<float> out);
  // from dout (tokens, dv) to gradients (pairs received, dv),
  void send_gradients(StepContext& context, size_t leg, Matrix<const float> dout, Matrix<float> gradients);
  // from one number per selection received to one per selection asked for.
  void send_scalars(StepContext& context, size_t leg, Vector<const float> answers, Vector<float> out);
  // Vectors, so many from and to each rank, in bf16 if the leg is to be.
  void send_vectors(StepContext& context, size_t leg, Matrix<const float> in, Vector<const int64_t> in_counts,
                    Matrix<float> out, Vector<const int64_t> out_counts, Purpose purpose);

  ExchangeOptions options_;
  size_t legs_ = 1;  // of the last forward()
  std::array<Route, 2> routes_;
  std::array<RouteCounts, 2> counts_;
  std::vector<int64_t> in_counts_;  // of floats, for a collective
  std::vector<int64_t> out_counts_;
};

}  // namespace pkmesh
