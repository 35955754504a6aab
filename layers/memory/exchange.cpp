// SPDX-License-Identifier: Apache-2.0
#include "layers/memory/exchange.h"

#include <fmt/format.h>

#include <algorithm>

#include "layers/elementwise.h"
#include "runtime/range.h"

namespace pkmesh {
namespace {

// Counts of `width` floats for each counted thing, in memory that is kept from call to call.
std::span<const int64_t> times(int64_t width, Vector<const int64_t> counts, std::vector<int64_t>& memory) {
  memory.resize(static_cast<size_t>(counts.count()));
  std::transform(counts.begin(), counts.end(), memory.begin(), [&](int64_t count) { return count * width; });
  return memory;
}

}  // namespace

bool in_two_legs(const ExchangeOptions& options, const Hosts& hosts) {
  return !options.pooled && hosts.count() > 1 && hosts.ranks_each() > 1;
}

std::string to_text(const ExchangeOptions& options, const Hosts& hosts) {
  return fmt::format("a vector per token and {}{}", in_two_legs(options, hosts) ? "host" : "owner",
                     options.bf16 && hosts.count() > 1 ? " in BF16" : "");
}

void Exchange::plan(StepContext& context, const Placement& placement, const RouteTag& tag, const Asked& asked) {
  Communicator& world = context.world;
  const auto plan_leg = [&](size_t leg, const Leg& way, const Asked& what) {
    RouteTag here = tag;
    here.leg = leg + (legs_ - 1);  // 0: the only one; 1, 2: of two
    routes_[leg] = plan_route(context.stream, context.arena, world, way, here, what, counts_[leg]);
  };
  legs_ = in_two_legs(options_, world.hosts()) ? 2 : 1;
  if (legs_ == 1) return plan_leg(0, Leg::direct(placement), asked);
  const int each = world.hosts().ranks_each();
  plan_leg(0, Leg::to_hosts(placement, world.rank(), each), asked);
  plan_leg(1, Leg::within_host(placement, world.rank(), each), routes_[0].arrived());
}

void Exchange::forward(StepContext& context, ValueTable& table, const RouteTag& tag, Matrix<const int32_t> slots,
                       Matrix<const float> weights, Matrix<float> out) {
  const Range range("pooled exchange forward");
  plan(context, table.placement(), tag, ask(context.stream, context.arena, slots, weights));
  const Vector<const Selection> selections = route().selections;
  table.count_usage(context.stream, selections);
  if (!route().travels) return pooled_gather(context.stream, table.rows(), selections, route().pair_offsets, out);

  const ArenaScope scope(context.arena);
  const int64_t width = table.shape().width;
  auto sums = context.arena.take<float>(route().pairs_received(), width);
  pooled_gather(context.stream, table.rows(), selections, route().pair_offsets, sums);
  for (size_t leg = legs_; leg-- > 0;) {
    const auto to = leg == 0 ? out : context.arena.take<float>(routes_[leg].tokens, width);
    send_sums(context, leg, sums, to);
    sums = to;
  }
}

void Exchange::backward(StepContext& context, ValueTable& table, Matrix<const float> dout, Matrix<float> dweights) {
  const Range range("pooled exchange backward");
  const int64_t width = table.shape().width;
  const int64_t per_token = dweights.size(1);
  check_shape("exchange: dout", dout, {{"tokens", routes_[0].tokens}, {"width", width}});
  check_shape("exchange: dweights", dweights, {{"tokens", routes_[0].tokens}, {"selections", per_token}});
  const auto all = dweights.reshape(dweights.count());
  // Of what all ranks select together, so that they all go one way: rows that move in backward() do so collectively.
  PKM_CHECK(context.all_tokens > 0 || !context.move_rows, "rows may move: how many tokens have all ranks?");
  const int64_t tokens = context.all_tokens > 0 ? context.all_tokens : routes_[0].tokens * context.world.size();
  const bool by_row = table.sums(tokens * per_token);
  const Route& owner = route();
  if (!owner.travels && by_row)
    return table.backward_by_row(context.stream, owner.selections, owner.pair_offsets, dout, all);
  if (!owner.travels) {
    copy(context.stream, dout.flat(), table.take_gradients(context.stream, dout.size(0)).flat());
    return table.backward(context, owner.selections, owner.pair_offsets, all);
  }

  const ArenaScope scope(context.arena);
  Matrix<const float> gradients = dout;
  for (size_t leg = 0; leg < legs_; ++leg) {
    const int64_t pairs = routes_[leg].pairs_received();
    const bool stays = leg + 1 == legs_ && !by_row;
    const auto to = stays ? table.take_gradients(context.stream, pairs) : context.arena.take<float>(pairs, width);
    send_gradients(context, leg, gradients, to);
    gradients = to;
  }
  auto answers = context.arena.take<float>(owner.selections.count());
  if (by_row)
    table.backward_by_row(context.stream, owner.selections, owner.pair_offsets, gradients, answers);
  else
    table.backward(context, owner.selections, owner.pair_offsets, answers);
  for (size_t leg = legs_; leg-- > 0;) {
    const auto to = leg == 0 ? all : context.arena.take<float>(routes_[leg].order.count());
    send_scalars(context, leg, answers, to);
    answers = to;
  }
}

void Exchange::send_sums(StepContext& context, size_t leg, Matrix<const float> sums, Matrix<float> out) {
  const ArenaScope scope(context.arena);
  const Route& route = routes_[leg];
  const auto partials = context.arena.take<float>(route.pairs_sent(), out.size(1));
  send_vectors(context, leg, sums, route.received_pairs, partials, route.sent_pairs, Purpose::kPartials);
  combine_partials(context.stream, partials, route.token_offsets, route.token_pairs, out);
}

void Exchange::send_gradients(StepContext& context, size_t leg, Matrix<const float> dout, Matrix<float> gradients) {
  const ArenaScope scope(context.arena);
  const Route& route = routes_[leg];
  const auto sent = context.arena.take<float>(route.pairs_sent(), dout.size(1));
  copy_rows(context.stream, dout, route.pair_token, sent);
  send_vectors(context, leg, sent, route.sent_pairs, gradients, route.received_pairs, Purpose::kOutputGradients);
}

void Exchange::send_scalars(StepContext& context, size_t leg, Vector<const float> answers, Vector<float> out) {
  const ArenaScope scope(context.arena);
  const Route& route = routes_[leg];
  const auto received = context.arena.take<float>(route.order.count());
  context.world.all_to_all_v<float>(answers.flat(), route.received_selections.flat(), received.flat(),
                                    route.sent_selections.flat(), Purpose::kWeightGradients);
  scatter_scalars(context.stream, received, route.order, out);
}

void Exchange::send_vectors(StepContext& context, size_t leg, Matrix<const float> in, Vector<const int64_t> in_counts,
                            Matrix<float> out, Vector<const int64_t> out_counts, Purpose purpose) {
  Communicator& world = context.world;
  const auto in_floats = times(in.size(1), in_counts, in_counts_);
  const auto out_floats = times(out.size(1), out_counts, out_counts_);
  // Of a leg that crosses all vectors, those that stay on the host too: what a rank gets must not depend on where it
  // is.
  const bool crosses = leg == 0 && world.hosts().count() > 1;
  if (!options_.bf16 || !crosses)
    return world.all_to_all_v<float>(in.flat(), in_floats, out.flat(), out_floats, purpose);
  const ArenaScope scope(context.arena);
  const auto sent = context.arena.take<bf16>(in.count());
  const auto received = context.arena.take<bf16>(out.count());
  narrow(context.stream, in.reshape(in.count()), sent);
  world.all_to_all_v<bf16>(sent.flat(), in_floats, received.flat(), out_floats, purpose);
  widen(context.stream, received, out.reshape(out.count()));
}

}  // namespace pkmesh
