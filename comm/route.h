// SPDX-License-Identifier: Apache-2.0
// A Route is who reads what from whom in one lookup: made once by plan_route(), a value from then on. The forward pass
// and the backward pass read the same Route. Its arrays live in the step's arena, on the device; the counts per rank
// are the host's, which needs them to size what is exchanged. The one time that the host waits for a GPU in a lookup is
// for the counts of what it sends.
//
// Each of T tokens reads S rows, spread over the owners that the Placement names. What a token reads from one owner is
// a *pair* (token, owner): the owner answers a pair with one vector, whatever the number of rows in it.
//
//   asker's side   selections sorted by (owner, token, position in the token): a stable sort by owner
//   owner's side   selections as they arrive: by (asking rank, token, position). As ranks hold consecutive tokens, this
//                  is the global order of tokens on any number of ranks.
//
// In a world of one nothing travels and nothing is sorted: the pairs are the tokens.
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
  int32_t row;  // local to its owner
  float weight;
};

// What ranks that exchange must agree on. It travels with the counts: a rank that is elsewhere is an error with names.
struct RouteTag {
  RouteTag(std::string_view layer_name, int64_t draw_number, int64_t table_rows);
  std::array<char, 48> layer{};  // its name, cut to fit, ends in a zero
  int64_t draw;                  // micro-batch since the start of the run
  int64_t rows;                  // of the table
  friend bool operator==(const RouteTag&, const RouteTag&) = default;
};

struct Route {
  int64_t tokens = 0;                // T, of this rank
  int64_t selections_per_token = 0;  // S
  bool travels = false;              // false in a world of one

  // What this rank asks for. order, pair_token, token_offsets and token_pairs are empty unless the route travels.
  Vector<const int32_t> order;                        // (T*S) number t*S + s of each selection sent
  Vector<const int32_t> pair_token;                   // (pairs sent) by (owner, token)
  Vector<const int32_t> token_offsets;                // (T + 1) into token_pairs
  Vector<const int32_t> token_pairs;                  // (pairs sent) pairs of each token, by owner
  Vector<const int64_t> sent_selections, sent_pairs;  // (R) to each owner; in host memory

  // What this rank is asked for.
  Vector<const Selection> selections;                         // by (asking rank, token, position)
  Vector<const int32_t> pair_offsets;                         // (pairs received + 1) into selections
  Vector<const int64_t> received_selections, received_pairs;  // (R) from each rank; in host memory

  int64_t pairs_sent() const { return travels ? pair_token.count() : tokens; }
  int64_t pairs_received() const { return pair_offsets.count() - 1; }
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

// rows, weights (T, S): global rows in [0, placement.rows()); S < 65536, T*S and what arrives < 2^31. Collective: every
// rank calls it, also with T = 0. Throws InternalError on a rank whose tag differs from another's.
Route plan_route(Stream& stream, Arena& arena, Communicator& world, const Placement& placement, const RouteTag& tag,
                 Matrix<const int32_t> rows, Matrix<const float> weights, RouteCounts& counts);

// The local part of planning: a stable sort of a rank's selections by owner. pairs <= T * min(S, R).
struct OwnerOrder {
  Vector<RowAddress> addresses;                   // (T*S) scratch
  Vector<Selection> selections;                   // (T*S)
  Vector<int32_t> order;                          // (T*S)
  Vector<uint16_t> pair_lengths;                  // (pairs) selections of each pair
  Vector<int32_t> pair_token;                     // (pairs)
  Vector<int32_t> token_offsets;                  // (T + 1)
  Vector<int32_t> token_pairs;                    // (pairs)
  Vector<int64_t> selection_counts, pair_counts;  // (R), one behind the other
};
PKM_KERNEL(sort_by_owner, const Placement& placement, Matrix<const int32_t> rows, Matrix<const float> weights,
           const OwnerOrder& out)
// In a world of one: selections (T*S) and pair_offsets (T + 1), a pair per token.
PKM_KERNEL(pair_with_tokens, Matrix<const int32_t> rows, Matrix<const float> weights, Vector<Selection> selections,
           Vector<int32_t> pair_offsets)
// offsets (pairs + 1) = 0 and the sums of the lengths so far, of which the last must be `total`.
PKM_KERNEL(add_lengths, Vector<const uint16_t> lengths, int64_t total, Vector<int32_t> offsets)

}  // namespace pkmesh
