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
}

int64_t Placement::local_rows(int owner) const {
  PKM_CHECK(owner >= 0 && owner < ranks(), "owner {} of {}", owner, ranks());
  return block_ + (static_cast<uint32_t>(owner) < long_owners_ ? 1 : 0);  // the same count for every kind
}

int32_t Placement::global(int owner, int32_t local) const {
  PKM_CHECK(local >= 0 && local < local_rows(owner), "local row {} of {}", local, local_rows(owner));
  if (ranks_ == 1) return local;
  const auto r = static_cast<uint32_t>(owner);
  const auto l = static_cast<uint32_t>(local);
  if (kind_ == PlacementKind::kBlock)
    return static_cast<int32_t>(r < long_owners_ ? r * (block_ + 1) + l : long_rows_ + (r - long_owners_) * block_ + l);
  const uint32_t i = l * ranks_ + r;
  return static_cast<int32_t>(kind_ == PlacementKind::kHash ? permute_back(i) : i);
}

uint32_t Placement::permute_back(uint32_t i) const {
  uint32_t inverse = 1;  // of the multiplier modulo 2^32, by Newton: each round doubles the bits that are right
  for (int round = 0; round < 5; ++round) inverse *= 2 - kMultiplier * inverse;
  do {
    i ^= i >> shift_;
    i = (i * inverse) & mask_;
    i ^= i >> shift_;
  } while (i >= rows_);
  return i;
}

}  // namespace pkmesh
