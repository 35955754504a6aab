// SPDX-License-Identifier: Apache-2.0
#include "comm/route.h"

#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <tuple>

#include "comm/self.h"
#include "comm/thread.h"
#include "runtime/random.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

constexpr PlacementKind kKinds[] = {PlacementKind::kBlock, PlacementKind::kCyclic, PlacementKind::kHash};

TEST(Placement, IsABijection) {
  for (const PlacementKind kind : kKinds)
    for (const int64_t rows : {0, 1, 2, 3, 5, 64, 100, 1021, 4096})
      for (const int ranks : {1, 2, 3, 4, 7, 64}) {
        const Placement placement(kind, rows, ranks);
        std::set<std::pair<int32_t, int32_t>> seen;
        for (int32_t row = 0; row < rows; ++row) {
          const RowAddress address = placement.locate(row);
          ASSERT_GE(address.owner, 0);
          ASSERT_LT(address.owner, ranks);
          ASSERT_GE(address.local, 0);
          ASSERT_LT(address.local, placement.local_rows(address.owner));
          ASSERT_TRUE(seen.insert({address.owner, address.local}).second);
          ASSERT_EQ(placement.global(address.owner, address.local), row);
        }
        int64_t total = 0;
        for (int owner = 0; owner < ranks; ++owner) total += placement.local_rows(owner);
        EXPECT_EQ(total, rows);
      }
}

TEST(Placement, LargeTablesRoundTrip) {
  const Random random(1, "placement");
  for (const PlacementKind kind : kKinds)
    for (const int64_t rows : {int64_t{1} << 30, (int64_t{1} << 30) - 12345, int64_t{0x7FFFFFFF}}) {
      const Placement placement(kind, rows, 61);
      for (uint64_t i = 0; i < 1000; ++i) {
        const auto row = static_cast<int32_t>(random.bits(i) % static_cast<uint64_t>(rows));
        const RowAddress address = placement.locate(row);
        ASSERT_EQ(placement.global(address.owner, address.local), row);
      }
    }
}

TEST(Placement, KeepsItsPromises) {
  const Placement block(PlacementKind::kBlock, 10, 4);  // 3 3 2 2
  EXPECT_EQ(block.locate(5), (RowAddress{1, 2}));
  EXPECT_EQ(block.locate(6), (RowAddress{2, 0}));
  EXPECT_EQ(block.locate(9), (RowAddress{3, 1}));
  const Placement cyclic(PlacementKind::kCyclic, 10, 4);
  EXPECT_EQ(cyclic.locate(9), (RowAddress{1, 2}));
  // A table of 512 x 512 slots of which one column is hot: cyclic puts it all on one owner, the hash spreads it.
  const Placement hash(PlacementKind::kHash, 512 * 512, 4);
  std::vector<int> load(4);
  for (int32_t i = 0; i < 512; ++i) ++load[hash.locate(i * 512 + 77).owner];
  for (const int count : load) EXPECT_NEAR(count, 128, 40);
}

// A rank's selections: S rows for each of T tokens; some ranks have none.
struct Questions {
  Questions(int rank, int64_t slots, int64_t per_token) {
    tokens = rank == 1 ? 0 : 5 + 70 * rank;
    const Random random(7, "route test", rank);
    for (int64_t i = 0; i < tokens * per_token; ++i) {
      // Duplicates inside a token, and tokens that ask one owner only.
      const bool narrow = (i / per_token) % 3 == 0;
      rows.push_back(static_cast<int32_t>(random.bits(i) % static_cast<uint32_t>(narrow ? 2 : slots)));
      weights.push_back(random.uniform(i + 1000));
    }
  }
  Asked in(Arena& arena, int64_t per_token) const {
    Stream stream;
    return ask(stream, arena, Matrix<const int32_t>(rows.data(), tokens, per_token),
               Matrix<const float>(weights.data(), tokens, per_token));
  }
  int64_t tokens = 0;
  std::vector<int32_t> rows;
  std::vector<float> weights;
};

// What each owner must receive, from first principles: all ranks' selections in order, those that it owns.
void expect_route(const Route& route, const Placement& placement, int rank, int ranks, int64_t slots,
                  int64_t per_token) {
  int64_t next = 0;
  int64_t pair = 0;
  for (int asker = 0; asker < ranks; ++asker) {
    const Questions asked(asker, slots, per_token);
    const int64_t first_selection = next;
    const int64_t first_pair = pair;
    for (int64_t token = 0; token < asked.tokens; ++token) {
      const int64_t begin = next;
      for (int64_t s = 0; s < per_token; ++s) {
        const RowAddress address = placement.locate(asked.rows[token * per_token + s]);
        if (address.owner != rank) continue;
        ASSERT_LT(next, route.selections.count());
        EXPECT_EQ(route.selections[next].row, address.local);
        EXPECT_EQ(route.selections[next].weight, asked.weights[token * per_token + s]);
        ++next;
      }
      if (next == begin && route.travels) continue;
      EXPECT_EQ(route.pair_offsets[pair], begin);
      EXPECT_EQ(route.pair_offsets[pair + 1], next);
      ++pair;
    }
    EXPECT_EQ(route.received_selections[asker], next - first_selection);
    EXPECT_EQ(route.received_pairs[asker], pair - first_pair);
  }
  EXPECT_EQ(route.selections.count(), next);
  EXPECT_EQ(route.pairs_received(), pair);
}

void expect_asker_side(const Route& route, const Asked& asked, const Leg& leg) {
  EXPECT_EQ(route.tokens, asked.tokens());
  if (!route.travels) return;
  std::set<int32_t> seen(route.order.begin(), route.order.end());
  EXPECT_EQ(std::ssize(seen), asked.selections.count()) << "each selection is sent once";
  int64_t next = 0;
  int64_t pair = 0;
  for (int peer = 0; peer < leg.peers(); ++peer) {
    const int rank = leg.rank_of(peer);
    for (int64_t i = 0; i < route.sent_selections[rank]; ++i, ++next)
      EXPECT_EQ(leg.locate(asked.selections[route.order[next]].row).owner, peer);
    for (int64_t i = 0; i < route.sent_pairs[rank]; ++i, ++pair) {
      const int32_t token = route.pair_token[pair];
      const auto* begin = route.token_pairs.data() + route.token_offsets[token];
      const auto* end = route.token_pairs.data() + route.token_offsets[token + 1];
      EXPECT_EQ(std::count(begin, end, pair), 1);
      EXPECT_TRUE(std::is_sorted(begin, end));
    }
  }
  EXPECT_EQ(next, asked.selections.count());
  EXPECT_EQ(pair, route.token_offsets[asked.tokens()]);
}

TEST(Route, DeliversEverySelectionInGlobalTokenOrder) {
  for (const int ranks : {1, 2, 3, 4})
    for (const PlacementKind kind : kKinds)
      for (const auto& [slots, per_token] : {std::tuple<int64_t, int64_t>{3, 4}, {1000, 16}, {64, 1}})
        run_ranks(ranks, [&](Communicator& world) {
          const Placement placement(kind, slots, ranks);
          const Questions asked(world.rank(), slots, per_token);
          Arena arena;
          Stream stream;
          RouteCounts counts;
          const Asked in = asked.in(arena, per_token);
          const Leg leg = Leg::direct(placement);
          const Route route = plan_route(stream, arena, world, leg, {"layers.2.memory", 4, slots}, in, counts);
          expect_route(route, placement, world.rank(), ranks, slots, per_token);
          expect_asker_side(route, in, leg);
        });
}

// On two legs each selection must come to its owner once, with its weight: by the first to the rank of the owner's host
// that has the number there which the asker has on its own. On the way back each leg must know its pairs.
TEST(Route, TwoLegsDeliverEverySelectionThroughTheOwnersHost) {
  constexpr int64_t kSlots = 1000;
  constexpr int64_t kPerToken = 7;
  for (const auto& [ranks, each] : {std::pair{4, 2}, {6, 3}, {6, 2}, {3, 1}, {3, 3}})
    for (const PlacementKind kind : kKinds) {
      std::mutex mutex;
      std::multiset<std::tuple<int, int32_t, float>> expected;  // owner, row there, weight
      std::multiset<std::tuple<int, int32_t, float>> arrived;
      run_ranks(ranks, [&, ranks = ranks, each = each](Communicator& world) {
        const Placement placement(kind, kSlots, ranks);
        const Questions asked(world.rank(), kSlots, kPerToken);
        Arena arena;
        Stream stream;
        RouteCounts counts[2];
        const RouteTag tag("memory", 0, kSlots);
        const Asked mine = asked.in(arena, kPerToken);
        const Leg to_hosts = Leg::to_hosts(placement, world.rank(), each);
        const Leg within = Leg::within_host(placement, world.rank(), each);
        const Route out = plan_route(stream, arena, world, to_hosts, tag, mine, counts[0]);
        const Route in = plan_route(stream, arena, world, within, tag, out.arrived(), counts[1]);
        const std::scoped_lock lock(mutex);
        expect_asker_side(out, mine, to_hosts);
        expect_asker_side(in, out.arrived(), within);
        for (int peer = 0; peer < ranks; ++peer) {
          if (peer % each != world.rank() % each) {
            EXPECT_EQ(out.sent_selections[peer] + out.received_pairs[peer], 0) << "rank " << peer;
          }
          if (peer / each != world.rank() / each) {
            EXPECT_EQ(in.sent_selections[peer] + in.received_pairs[peer], 0) << "rank " << peer;
          }
        }
        for (const Selection& selection : out.selections)
          EXPECT_EQ(placement.locate(selection.row).owner / each, world.rank() / each);
        for (size_t i = 0; i < asked.rows.size(); ++i) {
          const RowAddress address = placement.locate(asked.rows[i]);
          expected.emplace(address.owner, address.local, asked.weights[i]);
        }
        for (const Selection& selection : in.selections) arrived.emplace(world.rank(), selection.row, selection.weight);
      });
      EXPECT_EQ(arrived, expected) << ranks << " ranks, " << each << " on a host";
    }
}

TEST(Hosts, HaveRanksEachWhereAllAreAlike) {
  const auto each = [](std::vector<int> of_rank, size_t hosts) {
    return Hosts{std::vector<std::string>(hosts, "host"), std::move(of_rank)}.ranks_each();
  };
  EXPECT_EQ(each({0}, 1), 1);
  EXPECT_EQ(each({0, 0, 0}, 1), 3);
  EXPECT_EQ(each({0, 0, 1, 1, 2, 2}, 3), 2);
  EXPECT_EQ(each({1, 1, 0, 0}, 2), 2);
  EXPECT_EQ(each({0, 1, 0, 1}, 2), 0) << "by turns";
  EXPECT_EQ(each({0, 0, 1}, 2), 0);
  EXPECT_EQ(each({0, 0, 0, 1}, 2), 0);
}

TEST(Route, SortDoesNotDependOnTheThreads) {
  const int64_t per_token = 16;
  const Questions asked(4, 1000, per_token);  // 285 tokens
  const auto run = [&](int thread_count) {
    const reference::ThreadScope scope(thread_count);
    std::vector<int32_t> result;
    Arena arena;
    Stream stream;
    const Placement placement(PlacementKind::kHash, 1000, 5);
    const int64_t n = asked.tokens * per_token;
    const OwnerOrder out{arena.take<RowAddress>(n), arena.take<Selection>(n), arena.take<int32_t>(n),
                         arena.take<uint16_t>(n),   arena.take<int32_t>(n),   arena.take<int32_t>(asked.tokens + 1),
                         arena.take<int32_t>(n),    arena.take<int64_t>(5),   arena.take<int64_t>(5)};
    cpu::sort_by_owner(stream, Leg::direct(placement), asked.in(arena, per_token), out);
    result.assign(out.order.begin(), out.order.end());
    result.insert(result.end(), out.token_offsets.begin(), out.token_offsets.end());
    result.insert(result.end(), out.token_pairs.begin(), out.token_pairs.begin() + out.token_offsets[asked.tokens]);
    return result;
  };
  const auto one = run(1);
  const auto three = run(3);
  EXPECT_EQ(one, three);
}

// What the rank 2 of three that is elsewhere makes the others say.
std::string said_of(const RouteTag& here, const RouteTag& elsewhere) {
  try {
    run_ranks(3, [&](Communicator& world) {
      const Placement placement(PlacementKind::kBlock, 10, 3);
      Arena arena;
      Stream stream;
      RouteCounts counts;
      plan_route(stream, arena, world, Leg::direct(placement), world.rank() == 2 ? elsewhere : here,
                 Questions(1, 10, 4).in(arena, 4), counts);
    });
  } catch (const InternalError& error) {
    return error.what();
  }
  return "nothing";
}

TEST(Route, RanksOutOfStepAreNamed) {
  const std::string layers = said_of({"layers.4.memory", 17, 10}, {"layers.5.memory", 17, 10});
  for (const char* const part : {"layers.4.memory", "layers.5.memory", "rank 2"})
    EXPECT_NE(layers.find(part), std::string::npos) << layers;
  RouteTag second("layers.4.memory", 17, 10);
  second.leg = 2;
  const std::string legs = said_of({"layers.4.memory", 17, 10}, second);
  for (const char* const part : {"leg 0", "leg 2", "rank 2"}) EXPECT_NE(legs.find(part), std::string::npos) << legs;
}

}  // namespace
}  // namespace pkmesh
