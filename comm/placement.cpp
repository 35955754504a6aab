// SPDX-License-Identifier: Apache-2.0
#include "comm/placement.h"

#include <bit>
#include <limits>

#include "runtime/check.h"

namespace pkmesh {

Placement::Placement(PlacementKind kind, int64_t rows, int ranks)
    : kind_(kind), rows_(rows), ranks_(static_cast<uint32_t>(ranks)) {
  PKM_CHECK(ranks >= 1 && rows >= 0 && rows <= std::numeric_limits<int32_t>::max(), "{} rows on {} ranks", rows, ranks);
  block_ = static_cast<uint32_t>(rows / ranks);
  long_owners_ = static_cast<uint32_t>(rows % ranks);
  long_rows_ = long_owners_ * (block_ + 1);
  const int bits = std::bit_width(static_cast<uint32_t>(rows <= 1 ? 1 : rows - 1));
  mask_ = static_cast<uint32_t>((uint64_t{1} << bits) - 1);
  shift_ = (bits + 1) / 2;
  for (int round = 0; round < 5; ++round)
    inverse_ *= 2 - kMultiplier * inverse_;  // Newton: each doubles the right bits
}

int64_t Placement::local_rows(int owner) const {
  PKM_CHECK(owner >= 0 && owner < ranks(), "owner {} of {}", owner, ranks());
  return block_ + (static_cast<uint32_t>(owner) < long_owners_ ? 1 : 0);  // the same count for every kind
}

int32_t Placement::global(int owner, int32_t local) const {
  PKM_CHECK(local >= 0 && local < local_rows(owner), "local row {} of {}", local, local_rows(owner));
  return global_row(owner, local);
}

}  // namespace pkmesh
