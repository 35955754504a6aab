// SPDX-License-Identifier: Apache-2.0
#include "comm/route.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "runtime/range.h"

namespace pkmesh {
namespace {

constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();

}  // namespace

struct RouteCounts::Message {
  int64_t selections;
  int64_t pairs;
  RouteTag tag;
};

namespace {

int64_t sum(Vector<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// The first `count` elements of a vector that was taken at its greatest possible size.
template <class T>
Vector<const T> first(Vector<T> vector, int64_t count) {
  return vector.rows(0, count);
}

void check_tags(std::span<const RouteCounts::Message> received, const RouteTag& mine, int rank) {
  for (size_t peer = 0; peer < received.size(); ++peer) {
    const RouteTag& theirs = received[peer].tag;
    PKM_CHECK(
        theirs == mine,
        "ranks are out of step: rank {} looks up {} ({} rows) in micro-batch {}, leg {}, but rank {} {} ({} rows) in "
        "micro-batch {}, leg {}",
        rank, mine.layer.data(), mine.rows, mine.draw, mine.leg, peer, theirs.layer.data(), theirs.rows, theirs.draw,
        theirs.leg);
  }
}

OwnerOrder take_owner_order(Arena& arena, int64_t tokens, int64_t selections, int64_t peers) {
  const int64_t pairs = std::min(tokens * peers, selections);
  const auto counts = arena.take<int64_t>(2 * peers);
  return {.addresses = arena.take<RowAddress>(selections),
          .selections = arena.take<Selection>(selections),
          .order = arena.take<int32_t>(selections),
          .pair_lengths = arena.take<uint16_t>(pairs),
          .pair_token = arena.take<int32_t>(pairs),
          .token_offsets = arena.take<int32_t>(tokens + 1),
          .token_pairs = arena.take<int32_t>(pairs),
          .selection_counts = counts.rows(0, peers),
          .pair_counts = counts.rows(peers, 2 * peers)};
}

}  // namespace

// One plan_route().
class RoutePlanner {
 public:
  RoutePlanner(Stream& stream, Arena& arena, Communicator& world, RouteCounts& counts)
      : stream_(stream), arena_(arena), world_(world), host_(counts), ranks_(world.size()) {
    host_.counts_.assign(static_cast<size_t>(4 * ranks_), 0);
  }

  Route plan_alone(const Asked& asked) {
    Route route;
    route.tokens = asked.tokens();
    route.selections = asked.selections;
    route.pair_offsets = asked.offsets;
    host_.counts_ = {asked.selections.count(), route.tokens, asked.selections.count(), route.tokens};
    describe_counts(route);
    return route;
  }

  Route plan(const Leg& leg, const RouteTag& tag, const Asked& asked) {
    Route route;
    route.tokens = asked.tokens();
    route.travels = true;
    describe_counts(route);
    const int64_t peers = leg.peers();
    const OwnerOrder sorted = take_owner_order(arena_, route.tokens, asked.selections.count(), peers);
    PKM_DISPATCH(stream_, sort_by_owner, leg, asked, sorted);
    host_.sent_.start(stream_, {sorted.selection_counts.data(), static_cast<size_t>(2 * peers)});
    const auto sent = host_.sent_.wait();
    for (int peer = 0; peer < peers; ++peer) {
      const auto rank = static_cast<size_t>(leg.rank_of(peer));
      host_.counts_[rank] = sent[static_cast<size_t>(peer)];
      host_.counts_[static_cast<size_t>(ranks_) + rank] = sent[static_cast<size_t>(peers + peer)];
    }
    const int64_t pairs = sum(route.sent_pairs);
    route.order = sorted.order;
    route.pair_token = first(sorted.pair_token, pairs);
    route.token_offsets = sorted.token_offsets;
    route.token_pairs = first(sorted.token_pairs, pairs);
    exchange_counts(tag, route);
    exchange_selections(sorted, route);
    return route;
  }

 private:
  void describe_counts(Route& route) {
    const auto counts = [&](int64_t which) {
      return Vector<const int64_t>(host_.counts_.data() + which * ranks_, ranks_);
    };
    route.sent_selections = counts(0);
    route.sent_pairs = counts(1);
    route.received_selections = counts(2);
    route.received_pairs = counts(3);
  }

  // Tells every rank how much will come, and learns how much to expect.
  void exchange_counts(const RouteTag& tag, const Route& route) {
    auto& out = host_.out_;
    auto& in = host_.in_;
    out.clear();
    for (int64_t r = 0; r < ranks_; ++r) out.push_back({route.sent_selections[r], route.sent_pairs[r], tag});
    in.assign(static_cast<size_t>(ranks_), {0, 0, tag});
    world_.all_to_all<RouteCounts::Message>(out, std::span(in), Purpose::kSelections);
    check_tags(in, tag, world_.rank());
    for (int64_t r = 0; r < ranks_; ++r) {
      host_.counts_[static_cast<size_t>(2 * ranks_ + r)] = in[static_cast<size_t>(r)].selections;
      host_.counts_[static_cast<size_t>(3 * ranks_ + r)] = in[static_cast<size_t>(r)].pairs;
    }
  }

  void exchange_selections(const OwnerOrder& sorted, Route& route) {
    const int64_t total = sum(route.received_selections);
    const int64_t pairs = sum(route.received_pairs);
    PKM_CHECK(total <= kLimit, "{} selections arrive on one rank in one micro-batch: more than 2^31 - 1", total);
    const auto selections = arena_.take<Selection>(total);
    const auto offsets = arena_.take<int32_t>(pairs + 1);
    const auto lengths = arena_.take<uint16_t>(pairs);
    world_.all_to_all_v<Selection>(sorted.selections.flat(), route.sent_selections.flat(), selections.flat(),
                                   route.received_selections.flat(), Purpose::kSelections);
    world_.all_to_all_v<uint16_t>(sorted.pair_lengths.rows(0, route.pairs_sent()).flat(), route.sent_pairs.flat(),
                                  lengths.flat(), route.received_pairs.flat(), Purpose::kSelections);
    PKM_DISPATCH(stream_, add_lengths, lengths, total, offsets);
    route.selections = selections;
    route.pair_offsets = offsets;
  }

  Stream& stream_;
  Arena& arena_;
  Communicator& world_;
  RouteCounts& host_;
  int64_t ranks_;
};

RouteCounts::RouteCounts() = default;
RouteCounts::~RouteCounts() = default;

RouteTag::RouteTag(std::string_view layer_name, int64_t draw_number, int64_t table_rows)
    : draw(draw_number), rows(table_rows) {
  std::copy_n(layer_name.data(), std::min(layer_name.size(), layer.size() - 1), layer.data());
}

Leg Leg::to_hosts(const Placement& placement, int rank, int ranks_each) {
  Leg leg(placement, Kind::kToHosts, rank % ranks_each, placement.ranks() / ranks_each);
  leg.step_ = ranks_each;
  leg.ranks_each_ = ranks_each;
  return leg;
}

Leg Leg::within_host(const Placement& placement, int rank, int ranks_each) {
  Leg leg(placement, Kind::kWithinHost, rank / ranks_each * ranks_each, ranks_each);
  leg.ranks_each_ = ranks_each;
  return leg;
}

Asked ask(Stream& stream, Arena& arena, Matrix<const int32_t> rows, Matrix<const float> weights) {
  check_shape("route: weights", weights, {{"tokens", rows.size(0)}, {"selections", rows.size(1)}});
  PKM_CHECK(rows.size(1) <= std::numeric_limits<uint16_t>::max() && rows.count() <= kLimit,
            "route: {} tokens of {} selections", rows.size(0), rows.size(1));
  const auto selections = arena.take<Selection>(rows.count());
  const auto offsets = arena.take<int32_t>(rows.size(0) + 1);
  PKM_DISPATCH(stream, select_by_token, rows, weights, selections, offsets);
  return {selections, offsets};
}

Route plan_route(Stream& stream, Arena& arena, Communicator& world, const Leg& leg, const RouteTag& tag,
                 const Asked& asked, RouteCounts& counts) {
  PKM_CHECK(leg.world() == world.size(), "rows are placed on {} ranks, the world has {}", leg.world(), world.size());
  const Range range("route");
  RoutePlanner planner(stream, arena, world, counts);
  return world.size() == 1 ? planner.plan_alone(asked) : planner.plan(leg, tag, asked);
}

}  // namespace pkmesh
