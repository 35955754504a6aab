// SPDX-License-Identifier: Apache-2.0
#include "layers/memory/exchange.h"

#include <algorithm>

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

void Exchange::forward(StepContext& context, ValueTable& table, const RouteTag& tag, Matrix<const int32_t> slots,
                       Matrix<const float> weights, Matrix<float> out) {
  const Range range("pooled exchange forward");
  route_ = plan_route(context.stream, context.arena, context.world, table.placement(), tag, slots, weights, counts_);
  table.count_usage(context.stream, route_.selections);
  if (!route_.travels) return pooled_gather(context.stream, table.rows(), route_.selections, route_.pair_offsets, out);

  const ArenaScope scope(context.arena);
  const int64_t width = table.shape().width;
  const auto mine = context.arena.take<float>(route_.pairs_received(), width);
  pooled_gather(context.stream, table.rows(), route_.selections, route_.pair_offsets, mine);
  const auto partials = context.arena.take<float>(route_.pairs_sent(), width);
  context.world.all_to_all_v<float>(mine.flat(), times(width, route_.received_pairs, in_counts_), partials.flat(),
                                    times(width, route_.sent_pairs, out_counts_), Purpose::kPartials);
  combine_partials(context.stream, partials, route_.token_offsets, route_.token_pairs, out);
}

void Exchange::backward(StepContext& context, ValueTable& table, Matrix<const float> dout, Matrix<float> dweights) {
  const Range range("pooled exchange backward");
  check_shape("exchange: dout", dout, {{"tokens", route_.tokens}, {"width", table.shape().width}});
  check_shape("exchange: dweights", dweights, {{"tokens", route_.tokens}, {"selections", route_.selections_per_token}});
  const auto all = dweights.reshape(dweights.count());
  // Of what all ranks select together, so that they all go one way: rows that move in backward() do so collectively.
  PKM_CHECK(context.all_tokens > 0 || !context.move_rows, "rows may move: how many tokens have all ranks?");
  const int64_t tokens = context.all_tokens > 0 ? context.all_tokens : route_.tokens * context.world.size();
  const bool by_row = table.sums(tokens * route_.selections_per_token);
  if (!route_.travels && by_row)
    return table.backward_by_row(context.stream, route_.selections, route_.pair_offsets, dout, all);
  if (!route_.travels) {
    copy(context.stream, dout.flat(), table.take_gradients(context.stream, dout.size(0)).flat());
    return table.backward(context, route_.selections, route_.pair_offsets, all);
  }

  const ArenaScope scope(context.arena);
  const int64_t pairs = route_.pairs_received();
  const auto gradients =
      by_row ? context.arena.take<float>(pairs, table.shape().width) : table.take_gradients(context.stream, pairs);
  send_gradients(context, dout, gradients);
  const auto mine = context.arena.take<float>(route_.selections.count());
  if (by_row)
    table.backward_by_row(context.stream, route_.selections, route_.pair_offsets, gradients, mine);
  else
    table.backward(context, route_.selections, route_.pair_offsets, mine);
  const auto received = context.arena.take<float>(route_.order.count());
  context.world.all_to_all_v<float>(mine.flat(), route_.received_selections.flat(), received.flat(),
                                    route_.sent_selections.flat(), Purpose::kWeightGradients);
  scatter_scalars(context.stream, received, route_.order, all);
}

void Exchange::send_gradients(StepContext& context, Matrix<const float> dout, Matrix<float> gradients) {
  const ArenaScope scope(context.arena);
  const int64_t width = dout.size(1);
  const auto sent = context.arena.take<float>(route_.pairs_sent(), width);
  copy_rows(context.stream, dout, route_.pair_token, sent);
  context.world.all_to_all_v<float>(sent.flat(), times(width, route_.sent_pairs, in_counts_), gradients.flat(),
                                    times(width, route_.received_pairs, out_counts_), Purpose::kOutputGradients);
}

}  // namespace pkmesh
