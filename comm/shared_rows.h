// SPDX-License-Identifier: Apache-2.0
// Rows of a matrix of which the ranks share the elements (GradientBuckets::shares): a rank reads a few rows, whoever
// looks after their elements, and adds to them. Used for token embeddings, of which a step's inputs are few, so that
// nothing need wait for the whole table.
//
// The matrix (n, width) stands at the beginning of a flat span. A row may lie in several ranks' shares. All ranks know
// which rows each asked for, and everybody's shares: so counts need no exchange.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"

namespace pkmesh {

class SharedRows {
 public:
  // shares[r]: rank r's of the flat span, ascending and apart. A rank asks with at most `most_ids` ids.
  SharedRows(Communicator& world, int64_t width, int64_t most_ids, std::vector<std::vector<Share>> shares);

  // places[i] becomes the place of row ids[i] among the count() different ones, which are ascending. Collective.
  void ask(std::span<const int32_t> ids, std::span<int32_t> places);
  int64_t count() const { return std::ssize(asked_[static_cast<size_t>(world_.rank())]); }

  // rows (count(), width) become those of the flat span as their owners have it. Collective.
  void fetch(std::span<const float> flat, std::span<float> rows);
  // All ranks' rows (count(), width) are added to what this rank looks after in the flat span, in the order of the
  // ranks, once that is waited for. The rows may be used again at once. Collective.
  [[nodiscard]] Pending add(std::span<const float> rows, std::span<float> flat);

 private:
  // Calls body(part of the flat span, its place in the asker's rows) for what the owner looks after of these rows: by
  // share, then by row.
  template <class Body>
  void for_parts(int owner, int asker, const Body& body) const;

  Communicator& world_;
  const int64_t width_;
  const int64_t most_ids_;
  const std::vector<std::vector<Share>> shares_;
  std::vector<std::vector<int32_t>> asked_;  // by each rank: ascending, each once
  std::vector<int32_t> all_;                 // the same as they travel: -1 behind each rank's last
  std::vector<int64_t> counts_of_owners_;    // elements of this rank's rows that each owner has
  std::vector<int64_t> counts_of_askers_;    // elements of each asker's rows that this rank has
  std::vector<float> of_owners_;             // the elements, rank by rank, and room for more
  std::vector<float> of_askers_;
};

}  // namespace pkmesh
