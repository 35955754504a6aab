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
    PKM_CHECK(theirs == mine,
              "ranks are out of step: rank {} looks up {} ({} rows) in micro-batch {}, but rank {} {} ({} rows) in "
              "micro-batch {}",
              rank, mine.layer.data(), mine.rows, mine.draw, peer, theirs.layer.data(), theirs.rows, theirs.draw);
  }
}

OwnerOrder take_owner_order(Arena& arena, int64_t tokens, int64_t selections, int64_t ranks) {
  const int64_t pairs = std::min(tokens * ranks, selections);
  const auto counts = arena.take<int64_t>(2 * ranks);
  return {.addresses = arena.take<RowAddress>(selections),
          .selections = arena.take<Selection>(selections),
          .order = arena.take<int32_t>(selections),
          .pair_lengths = arena.take<uint16_t>(pairs),
          .pair_token = arena.take<int32_t>(pairs),
          .token_offsets = arena.take<int32_t>(tokens + 1),
          .token_pairs = arena.take<int32_t>(pairs),
          .selection_counts = counts.rows(0, ranks),
          .pair_counts = counts.rows(ranks, 2 * ranks)};
}

}  // namespace

// One plan_route().
class RoutePlanner {
 public:
  RoutePlanner(Stream& stream, Arena& arena, Communicator& world, RouteCounts& counts)
      : stream_(stream), arena_(arena), world_(world), host_(counts), ranks_(world.size()) {
    host_.counts_.assign(static_cast<size_t>(4 * ranks_), 0);
  }

  Route plan_alone(Matrix<const int32_t> rows, Matrix<const float> weights) {
    Route route = begin(rows);
    const auto selections = arena_.take<Selection>(rows.count());
    const auto offsets = arena_.take<int32_t>(rows.size(0) + 1);
    PKM_DISPATCH(stream_, pair_with_tokens, rows, weights, selections, offsets);
    route.selections = selections;
    route.pair_offsets = offsets;
    route.sent_selections = route.received_selections = counts(0, {rows.count()});
    route.sent_pairs = route.received_pairs = counts(1, {rows.size(0)});
    return route;
  }

  Route plan(const Placement& placement, const RouteTag& tag, Matrix<const int32_t> rows, Matrix<const float> weights) {
    Route route = begin(rows);
    route.travels = true;
    const OwnerOrder sorted = take_owner_order(arena_, rows.size(0), rows.count(), ranks_);
    PKM_DISPATCH(stream_, sort_by_owner, placement, rows, weights, sorted);
    host_.sent_.start(stream_, {sorted.selection_counts.data(), static_cast<size_t>(2 * ranks_)});
    const auto sent = host_.sent_.wait();
    route.sent_selections = counts(0, sent.first(static_cast<size_t>(ranks_)));
    route.sent_pairs = counts(1, sent.last(static_cast<size_t>(ranks_)));
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
  static Route begin(Matrix<const int32_t> rows) {
    Route route;
    route.tokens = rows.size(0);
    route.selections_per_token = rows.size(1);
    return route;
  }

  Vector<const int64_t> counts(int64_t which, std::span<const int64_t> values) {
    int64_t* const memory = host_.counts_.data() + which * ranks_;
    std::ranges::copy(values, memory);
    return Vector<const int64_t>(memory, ranks_);
  }
  Vector<const int64_t> counts(int64_t which, std::initializer_list<int64_t> values) {
    return counts(which, std::span(values.begin(), values.size()));
  }

  // Tells every owner how much will come, and learns how much to expect.
  void exchange_counts(const RouteTag& tag, Route& route) {
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
    route.received_selections = Vector<const int64_t>(host_.counts_.data() + 2 * ranks_, ranks_);
    route.received_pairs = Vector<const int64_t>(host_.counts_.data() + 3 * ranks_, ranks_);
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

Route plan_route(Stream& stream, Arena& arena, Communicator& world, const Placement& placement, const RouteTag& tag,
                 Matrix<const int32_t> rows, Matrix<const float> weights, RouteCounts& counts) {
  check_shape("route: weights", weights, {{"tokens", rows.size(0)}, {"selections", rows.size(1)}});
  PKM_CHECK(rows.size(1) <= std::numeric_limits<uint16_t>::max() && rows.count() <= kLimit,
            "route: {} tokens of {} selections", rows.size(0), rows.size(1));
  PKM_CHECK(placement.ranks() == world.size(), "rows are placed on {} ranks, the world has {}", placement.ranks(),
            world.size());
  const Range range("route");
  RoutePlanner planner(stream, arena, world, counts);
  return world.size() == 1 ? planner.plan_alone(rows, weights) : planner.plan(placement, tag, rows, weights);
}

}  // namespace pkmesh
