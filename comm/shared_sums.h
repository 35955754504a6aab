// SPDX-License-Identifier: Apache-2.0
// Sums of large spans over ranks that share a host's memory, without a message. Each rank owns a share of the span,
// sums it, and shows it to the others. What travels passes through windows that one rank writes and the others read:
// small enough to stay in a cache, so that each span is read from memory once and written once, whatever its size.
//
// The ranks go in rounds, a piece of every share in each. A rank writes its next window before it reads the others' of
// this round; it writes over a window only when all others have read it. So nobody waits but for ranks that are behind.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "comm/share.h"

namespace pkmesh {

class SharedSums {
 public:
  static constexpr int64_t kWindow = 32768;  // floats: a window has two halves of 128 KiB, which stay in a small cache
  static constexpr int kMostRanks = 128;     // with more the pieces would be too short

  // What a rank shows to the others. Zero-initialised, and plain memory beside lock-free words: it may lie in memory
  // shared by processes.
  struct Window {
    alignas(64) std::atomic<int64_t> written;   // rounds that can be read here
    alignas(64) std::atomic<int64_t> read;      // rounds in which this rank has read all others' windows
    alignas(64) std::array<int64_t, 2> totals;  // size of the span whose parts stand in each half
    alignas(64) std::array<std::array<float, kWindow>, 2> parts;
  };

  // windows[r] is rank r's, counted among those that share memory, aligned to 64 bytes; they outlive this object.
  // `idle` is called, again and again, while a rank waits long.
  SharedSums(int rank, std::vector<Window*> windows, std::function<void()> idle);

  // All ranks call these alike. This rank's share_of() data (n) becomes the sum over ranks, added in their order: the
  // same bits in every run. The rest of data stays as it is.
  void sum(std::span<float> data);
  // Every rank's share of data (n) becomes everyone's.
  void gather(std::span<float> data);

 private:
  struct Piece {
    int64_t begin;
    int64_t count;
  };
  int ranks() const { return static_cast<int>(windows_.size()); }
  int64_t piece_size() const { return kWindow / ranks(); }
  // Rounds until all shares of `total` are through, and what one of them takes from a share.
  int64_t rounds_of(int64_t total) const;
  Piece piece_of(int64_t total, int owner, int64_t round) const;
  // Calls body(rank) for all others, from the next one on, so that not all begin with rank 0.
  template <class Body>
  void for_others(const Body& body) const;
  // Waits until that count of all others has reached `rounds`.
  void wait_for_others(std::atomic<int64_t> Window::*count, int64_t rounds) const;
  // Calls write(round, mine) and, one round later, read(round, parity) for all rounds of `total`.
  template <class Write, class Read>
  void run(int64_t total, const Write& write, const Read& read);
  void check_totals(int64_t total, size_t parity) const;

  const int rank_;
  const std::vector<Window*> windows_;
  const std::function<void()> idle_;
  int64_t done_ = 0;  // rounds so far
};

}  // namespace pkmesh
