// SPDX-License-Identifier: Apache-2.0
// A Route is who reads what from whom in one lookup: made once by plan_route(), a value from then on. The forward pass
// and the backward pass read the same Route. Its arrays live in the step's arena, on the device; the counts per rank
// are the host's, which needs them to size what is exchanged. The one time that the host waits for a GPU in a route is
// for the counts of what it sends.
//
// Each of T tokens reads some rows, spread over the owners that a Leg names. What a token reads from one owner is a
// *pair* (token, owner): the owner answers a pair with one vector, whatever the number of rows in it.
//
//   asker's side   selections sorted by (owner, token, position in the token): a stable sort by owner
//   owner's side   selections as they arrive: by (asking rank, token, position). As ranks hold consecutive tokens, this
//                  is the global order of tokens on any number of ranks, if they came in one route.
//
// A lookup is one route, or two on end: what arrived by the first is what the second asks for, its pairs in the place
// of tokens. The owner then has tokens by the place of their rank on its host, and within a place by host. In a world
// of one nothing travels and nothing is sorted: the pairs are the tokens.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "comm/placement.h"
#include "runtime/buffer.h"
#include "runtime/dispatch.h"
#include "runtime/readback.h"

namespace pkmesh {

struct Selection {
  int32_t row;  // as the leg numbers it: of the whole table, or of the owner's rows
  float weight;
};

// Which way a lookup goes: to the peers [0, peers()), a part of the world's ranks.
//
//   direct       all ranks; a row is with its owner
//   to hosts     of each host the rank that stands there as this one stands here, and takes in there what this rank
//                asks of the host; rows keep their global numbers
//   within host  the ranks of this host; of the rows of its ranks each is with its owner
//
// The last two on end reach every row. They stand on hosts with as many ranks each, one host's after the other's
// (Hosts::ranks_each()).
class Leg {
 public:
  static Leg direct(const Placement& placement) { return {placement, Kind::kDirect, 0, placement.ranks()}; }
  static Leg to_hosts(const Placement& placement, int rank, int ranks_each);
  static Leg within_host(const Placement& placement, int rank, int ranks_each);

  int peers() const { return peers_; }
  int world() const { return placement_.ranks(); }
  int rank_of(int peer) const { return first_ + peer * step_; }
  // The peer that a row is asked of, by its number, and the row as that numbers it. Within a host: of its ranks' rows.
  PKM_HOST_DEVICE RowAddress locate(int32_t row) const {
    const RowAddress address = placement_.locate(row);
    if (kind_ == Kind::kDirect) return address;
    return kind_ == Kind::kToHosts ? RowAddress{address.owner / ranks_each_, row}
                                   : RowAddress{address.owner % ranks_each_, address.local};
  }

 private:
  enum class Kind { kDirect, kToHosts, kWithinHost };
  Leg(const Placement& placement, Kind kind, int first, int peers)
      : placement_(placement), kind_(kind), first_(first), peers_(peers) {}

  Placement placement_;
  Kind kind_;
  int first_;     // rank of the first peer
  int step_ = 1;  // to the next one's
  int peers_;
  int ranks_each_ = 1;  // of a host
};

// What ranks that exchange must agree on. It travels with the counts: a rank that is elsewhere is an error with names.
struct RouteTag {
  RouteTag(std::string_view layer_name, int64_t draw_number, int64_t table_rows);
  std::array<char, 48> layer{};  // its name, cut to fit, ends in a zero
  int64_t draw;                  // micro-batch since the start of the run
  int64_t rows;                  // of the table
  int64_t leg = 0;               // of the lookup
  friend bool operator==(const RouteTag&, const RouteTag&) = default;
};

// What a rank looks up: of token t the selections [offsets[t], offsets[t + 1]), their rows as the leg numbers them.
struct Asked {
  Vector<const Selection> selections;  // (M)
  Vector<const int32_t> offsets;       // (T + 1)
  int64_t tokens() const { return offsets.count() - 1; }
};
// S of each token: row and weight (T, S) of each. In the arena.
Asked ask(Stream& stream, Arena& arena, Matrix<const int32_t> rows, Matrix<const float> weights);

struct Route {
  int64_t tokens = 0;    // T, of this rank
  bool travels = false;  // false in a world of one

  // What this rank asks for. order, pair_token, token_offsets and token_pairs are empty unless the route travels.
  Vector<const int32_t> order;                        // (M) number of each selection sent among those asked for
  Vector<const int32_t> pair_token;                   // (pairs sent) by (owner, token)
  Vector<const int32_t> token_offsets;                // (T + 1) into token_pairs
  Vector<const int32_t> token_pairs;                  // (pairs sent) pairs of each token, by owner
  Vector<const int64_t> sent_selections, sent_pairs;  // (R) to each rank; in host memory

  // What this rank is asked for.
  Vector<const Selection> selections;                         // by (asking rank, token, position)
  Vector<const int32_t> pair_offsets;                         // (pairs received + 1) into selections
  Vector<const int64_t> received_selections, received_pairs;  // (R) from each rank; in host memory

  int64_t pairs_sent() const { return travels ? pair_token.count() : tokens; }
  int64_t pairs_received() const { return pair_offsets.count() - 1; }
  // What arrived, to be asked for on the next leg.
  Asked arrived() const { return {selections, pair_offsets}; }
};

// The host's side of the lookups of one layer: a Route's counts stand here until the next plan_route() with it.
class RouteCounts {
 public:
  struct Message;  // what two ranks tell each other
  RouteCounts();
  ~RouteCounts();
  RouteCounts(const RouteCounts&) = delete;
  RouteCounts& operator=(const RouteCounts&) = delete;

 private:
  friend class RoutePlanner;
  Readback<int64_t> sent_;
  std::vector<int64_t> counts_;    // (4, R): selections sent, pairs sent, selections received, pairs received
  std::vector<Message> out_, in_;  // (R)
};

// Fewer than 65536 selections of a token, fewer than 2^31 in all and of what arrives. Collective: every rank calls it,
// also with T = 0. Throws InternalError on a rank whose tag differs from another's.
Route plan_route(Stream& stream, Arena& arena, Communicator& world, const Leg& leg, const RouteTag& tag,
                 const Asked& asked, RouteCounts& counts);

// The local part of planning: a stable sort of a rank's selections by owner, the peers of a leg. pairs <= min(M, T *
// peers).
struct OwnerOrder {
  Vector<RowAddress> addresses;                   // (M) scratch
  Vector<Selection> selections;                   // (M)
  Vector<int32_t> order;                          // (M)
  Vector<uint16_t> pair_lengths;                  // (pairs) selections of each pair
  Vector<int32_t> pair_token;                     // (pairs)
  Vector<int32_t> token_offsets;                  // (T + 1)
  Vector<int32_t> token_pairs;                    // (pairs)
  Vector<int64_t> selection_counts, pair_counts;  // (peers), one behind the other
};
PKM_KERNEL(sort_by_owner, const Leg& leg, const Asked& asked, const OwnerOrder& out)
// selections (T*S) and offsets (T + 1) of rows and weights (T, S).
PKM_KERNEL(select_by_token, Matrix<const int32_t> rows, Matrix<const float> weights, Vector<Selection> selections,
           Vector<int32_t> offsets)
// offsets (pairs + 1) = 0 and the sums of the lengths so far, of which the last must be `total`.
PKM_KERNEL(add_lengths, Vector<const uint16_t> lengths, int64_t total, Vector<int32_t> offsets)

}  // namespace pkmesh
