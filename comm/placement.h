// SPDX-License-Identifier: Apache-2.0
// Where the rows of a table live: a bijection between global rows [0, N) and (owner, local row). Every rank can compute
// it for every row, so rows find their owner without asking. In a world of one, local rows are the global ones.
//
//   kBlock   owner r holds consecutive rows; the first N mod R owners hold one more
//   kCyclic  row i lives on owner i mod R
//   kHash    rows are permuted by an invertible hash first and then dealt as kCyclic: evens out hot neighbourhoods
#pragma once

#include <cstdint>

#include "runtime/host_device.h"

namespace pkmesh {

enum class PlacementKind { kBlock, kCyclic, kHash };

struct RowAddress {
  int32_t owner;
  int32_t local;
  friend bool operator==(RowAddress, RowAddress) = default;
};

class Placement {
 public:
  // 1 <= ranks, 0 <= rows < 2^31. Owners may hold no rows.
  Placement(PlacementKind kind, int64_t rows, int ranks);

  int64_t rows() const { return rows_; }
  int ranks() const { return static_cast<int>(ranks_); }
  int64_t local_rows(int owner) const;

  PKM_HOST_DEVICE RowAddress locate(int32_t row) const {
    auto i = static_cast<uint32_t>(row);
    if (ranks_ == 1) return {0, row};
    if (kind_ == PlacementKind::kBlock) {
      if (i < long_rows_) return divide(i, block_ + 1);
      const RowAddress address = divide(i - long_rows_, block_);
      return {address.owner + static_cast<int32_t>(long_owners_), address.local};
    }
    if (kind_ == PlacementKind::kHash) i = permute(i);
    return {static_cast<int32_t>(i % ranks_), static_cast<int32_t>(i / ranks_)};
  }
  int32_t global(int owner, int32_t local) const;  // checks
  // As global(), for rows that the owner has.
  PKM_HOST_DEVICE int32_t global_row(int owner, int32_t local) const {
    if (ranks_ == 1) return local;
    const auto r = static_cast<uint32_t>(owner);
    const auto l = static_cast<uint32_t>(local);
    if (kind_ == PlacementKind::kBlock)
      return static_cast<int32_t>(r < long_owners_ ? r * (block_ + 1) + l
                                                   : long_rows_ + (r - long_owners_) * block_ + l);
    const uint32_t i = l * ranks_ + r;
    return static_cast<int32_t>(kind_ == PlacementKind::kHash ? permute_back(i) : i);
  }

 private:
  PKM_HOST_DEVICE static RowAddress divide(uint32_t i, uint32_t by) {
    return {static_cast<int32_t>(i / by), static_cast<int32_t>(i % by)};
  }
  // A bijection on [0, 2^bits), walked until it ends inside [0, rows): fewer than two rounds on average.
  PKM_HOST_DEVICE uint32_t permute(uint32_t i) const {
    do {
      i ^= i >> shift_;
      i = (i * kMultiplier) & mask_;
      i ^= i >> shift_;
    } while (i >= rows_);
    return i;
  }
  PKM_HOST_DEVICE uint32_t permute_back(uint32_t i) const {
    do {
      i ^= i >> shift_;
      i = (i * inverse_) & mask_;
      i ^= i >> shift_;
    } while (i >= rows_);
    return i;
  }

  static constexpr uint32_t kMultiplier = 0x9E3779B1;  // odd, near 2^32 / golden ratio (Knuth)

  PlacementKind kind_;
  int64_t rows_;
  uint32_t ranks_;
  uint32_t block_;        // rows of a short owner
  uint32_t long_owners_;  // owners with one row more
  uint32_t long_rows_;    // rows that these hold
  uint32_t mask_;
  uint32_t inverse_ = 1;  // of the multiplier modulo 2^32
  int shift_;             // at least half the bits, so that i ^= i >> shift_ undoes itself
};

}  // namespace pkmesh
