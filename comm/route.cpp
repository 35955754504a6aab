// SPDX-License-Identifier: Apache-2.0
#include "comm/route.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "runtime/parallel.h"
#include "runtime/range.h"

namespace pkmesh {
namespace {

constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();

struct Counts {
  int64_t selections;
  int64_t pairs;
  RouteTag tag;
};

int64_t sum(Vector<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// The first `count` elements of a vector that was taken at its greatest possible size.
template <class T>
Vector<const T> first(Vector<T> vector, int64_t count) {
  return vector.rows(0, count);
}

void check_tags(std::span<const Counts> received, const RouteTag& mine, int rank) {
  for (size_t peer = 0; peer < received.size(); ++peer) {
    const RouteTag& theirs = received[peer].tag;
    PKM_CHECK(theirs == mine,
              "ranks are out of step: rank {} looks up {} ({} rows) in micro-batch {}, but rank {} {} ({} rows) in "
              "micro-batch {}",
              rank, mine.layer.data(), mine.rows, mine.draw, peer, theirs.layer.data(), theirs.rows, theirs.draw);
  }
}

Route plan_alone(Arena& arena, Matrix<const int32_t> rows, Matrix<const float> weights) {
  Route route;
  route.tokens = rows.size(0);
  route.selections_per_token = rows.size(1);
  const auto selections = arena.take<Selection>(rows.count());
  const auto offsets = arena.take<int32_t>(rows.size(0) + 1);
  parallel_for(0, rows.count(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) selections[i] = {rows.data()[i], weights.data()[i]};
  });
  for (int64_t token = 0; token <= rows.size(0); ++token) offsets[token] = static_cast<int32_t>(token * rows.size(1));
  const auto counts = arena.take<int64_t>(2);
  counts[0] = rows.count();
  counts[1] = rows.size(0);
  route.selections = selections;
  route.pair_offsets = offsets;
  route.sent_selections = route.received_selections = counts.rows(0, 1);
  route.sent_pairs = route.received_pairs = counts.rows(1, 2);
  return route;
}

OwnerOrder take_owner_order(Arena& arena, int64_t tokens, int64_t selections, int64_t ranks) {
  const int64_t pairs = std::min(tokens * ranks, selections);
  return {.addresses = arena.take<RowAddress>(selections),
          .selections = arena.take<Selection>(selections),
          .order = arena.take<int32_t>(selections),
          .pair_lengths = arena.take<uint16_t>(pairs),
          .pair_token = arena.take<int32_t>(pairs),
          .token_offsets = arena.take<int32_t>(tokens + 1),
          .token_pairs = arena.take<int32_t>(pairs),
          .selection_counts = arena.take<int64_t>(ranks),
          .pair_counts = arena.take<int64_t>(ranks)};
}

// Tells every owner how much will come, and learns how much to expect.
void exchange_counts(Arena& arena, Communicator& world, const RouteTag& tag, const OwnerOrder& sorted, Route& route) {
  const int64_t ranks = world.size();
  const auto sent = arena.take<Counts>(ranks);
  const auto received = arena.take<Counts>(ranks);
  for (int64_t r = 0; r < ranks; ++r) sent[r] = {sorted.selection_counts[r], sorted.pair_counts[r], tag};
  world.all_to_all<Counts>(sent.flat(), received.flat(), Purpose::kSelections);
  check_tags(received.flat(), tag, world.rank());
  const auto selections = arena.take<int64_t>(ranks);
  const auto pairs = arena.take<int64_t>(ranks);
  for (int64_t r = 0; r < ranks; ++r) {
    selections[r] = received[r].selections;
    pairs[r] = received[r].pairs;
  }
  route.received_selections = selections;
  route.received_pairs = pairs;
}

void exchange_selections(Arena& arena, Communicator& world, const OwnerOrder& sorted, Route& route) {
  const int64_t total = sum(route.received_selections);
  const int64_t pairs = sum(route.received_pairs);
  PKM_CHECK(total <= kLimit, "{} selections arrive on one rank in one micro-batch: more than 2^31 - 1", total);
  const auto selections = arena.take<Selection>(total);
  const auto offsets = arena.take<int32_t>(pairs + 1);
  const auto lengths = arena.take<uint16_t>(pairs);
  world.all_to_all_v<Selection>(sorted.selections.flat(), route.sent_selections.flat(), selections.flat(),
                                route.received_selections.flat(), Purpose::kSelections);
  world.all_to_all_v<uint16_t>(sorted.pair_lengths.rows(0, route.pairs_sent()).flat(), route.sent_pairs.flat(),
                               lengths.flat(), route.received_pairs.flat(), Purpose::kSelections);
  offsets[0] = 0;
  for (int64_t pair = 0; pair < pairs; ++pair) offsets[pair + 1] = offsets[pair] + lengths[pair];
  PKM_CHECK(offsets[pairs] == total, "{} selections arrived for pairs of {}", total, offsets[pairs]);
  route.selections = selections;
  route.pair_offsets = offsets;
}

}  // namespace

RouteTag::RouteTag(std::string_view layer_name, int64_t draw_number, int64_t table_rows)
    : draw(draw_number), rows(table_rows) {
  std::copy_n(layer_name.data(), std::min(layer_name.size(), layer.size() - 1), layer.data());
}

Route plan_route(Stream& stream, Arena& arena, Communicator& world, const Placement& placement, const RouteTag& tag,
                 Matrix<const int32_t> rows, Matrix<const float> weights) {
  check_shape("route: weights", weights, {{"tokens", rows.size(0)}, {"selections", rows.size(1)}});
  PKM_CHECK(rows.size(1) <= std::numeric_limits<uint16_t>::max() && rows.count() <= kLimit,
            "route: {} tokens of {} selections", rows.size(0), rows.size(1));
  PKM_CHECK(placement.ranks() == world.size(), "rows are placed on {} ranks, the world has {}", placement.ranks(),
            world.size());
  const Range range("route");
  if (world.size() == 1) return plan_alone(arena, rows, weights);

  Route route;
  route.travels = true;
  route.tokens = rows.size(0);
  route.selections_per_token = rows.size(1);
  const OwnerOrder sorted = take_owner_order(arena, rows.size(0), rows.count(), world.size());
  PKM_DISPATCH(stream, sort_by_owner, placement, rows, weights, sorted);
  const int64_t pairs = sum(sorted.pair_counts);
  route.order = sorted.order;
  route.pair_token = first(sorted.pair_token, pairs);
  route.token_offsets = sorted.token_offsets;
  route.token_pairs = first(sorted.token_pairs, pairs);
  route.sent_selections = sorted.selection_counts;
  route.sent_pairs = sorted.pair_counts;
  exchange_counts(arena, world, tag, sorted, route);
  exchange_selections(arena, world, sorted, route);
  return route;
}

}  // namespace pkmesh
