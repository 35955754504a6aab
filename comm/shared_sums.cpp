// SPDX-License-Identifier: Apache-2.0
#include "comm/shared_sums.h"

#include <algorithm>
#include <utility>

#include "runtime/check.h"
#include "runtime/pause.h"

namespace pkmesh {
namespace {

constexpr int64_t kStrip = 256;  // floats that are summed over all ranks at a time

}  // namespace

SharedSums::SharedSums(int rank, std::vector<Window*> windows, std::function<void()> idle)
    : rank_(rank), windows_(std::move(windows)), idle_(std::move(idle)) {
  static_assert(std::atomic<int64_t>::is_always_lock_free);
  PKM_CHECK(0 <= rank && rank < ranks() && ranks() <= kMostRanks, "rank {} of {}", rank, ranks());
  for (const Window* window : windows_) {
    const auto address = reinterpret_cast<uintptr_t>(window);
    PKM_CHECK(address % alignof(Window) == 0, "a window at address {}", address);
  }
}

int64_t SharedSums::rounds_of(int64_t total) const {
  int64_t longest = 0;
  for (int rank = 0; rank < ranks(); ++rank) longest = std::max(longest, share_of(total, rank, ranks()).count());
  return (longest + piece_size() - 1) / piece_size();
}

SharedSums::Piece SharedSums::piece_of(int64_t total, int owner, int64_t round) const {
  const Share share = share_of(total, owner, ranks());
  const int64_t begin = std::min(share.begin + round * piece_size(), share.end);
  return {begin, std::min(piece_size(), share.end - begin)};
}

template <class Body>
void SharedSums::for_others(const Body& body) const {
  for (int step = 1; step < ranks(); ++step) body((rank_ + step) % ranks());
}

void SharedSums::wait_for_others(std::atomic<int64_t> Window::*count, int64_t rounds) const {
  constexpr int kPatience = 2000;  // some 20 to 100 us: longer than a piece takes
  for_others([&](int rank) {
    const std::atomic<int64_t>& reached = windows_[static_cast<size_t>(rank)]->*count;
    for (int64_t looks = 1; reached.load(std::memory_order_acquire) < rounds; ++looks) {
      pause_briefly();
      if (looks % kPatience == 0) idle_();
    }
  });
}

template <class Write, class Read>
void SharedSums::run(int64_t total, const Write& write, const Read& read) {
  const int64_t rounds = rounds_of(total);
  Window& mine = *windows_[static_cast<size_t>(rank_)];
  for (int64_t i = 0; i <= rounds; ++i) {
    if (i < rounds) {
      const int64_t round = done_ + i;
      wait_for_others(&Window::read, round - 1);  // what stands where this is to be written
      write(i, mine.parts[static_cast<size_t>(round % 2)].data());
      mine.totals[static_cast<size_t>(round % 2)] = total;
      mine.written.store(round + 1, std::memory_order_release);
    }
    if (i > 0) {
      const int64_t round = done_ + i - 1;
      wait_for_others(&Window::written, round + 1);
      check_totals(total, static_cast<size_t>(round % 2));
      read(i - 1, static_cast<size_t>(round % 2));
      mine.read.store(round + 1, std::memory_order_release);
    }
  }
  done_ += rounds;
}

// All ranks call with one size, or what they take for each other's shares are not.
void SharedSums::check_totals(int64_t total, size_t parity) const {
  for_others([&](int rank) {
    const int64_t theirs = windows_[static_cast<size_t>(rank)]->totals[parity];
    PKM_CHECK(theirs == total, "rank {} sums {} numbers, rank {} {}", rank_, total, rank, theirs);
  });
}

// What a rank shows are its parts of the others' shares.
void SharedSums::sum(std::span<float> data) {
  const auto total = static_cast<int64_t>(data.size());
  const auto write = [&](int64_t round, float* mine) {
    for_others([&](int owner) {
      const Piece piece = piece_of(total, owner, round);
      std::copy_n(data.data() + piece.begin, piece.count, mine + owner * piece_size());
    });
  };
  const auto read = [&](int64_t round, size_t parity) {
    const Piece piece = piece_of(total, rank_, round);
    const auto part_of = [&](int rank) {
      if (rank == rank_) return static_cast<const float*>(data.data() + piece.begin);
      return static_cast<const float*>(windows_[static_cast<size_t>(rank)]->parts[parity].data() +
                                       rank_ * piece_size());
    };
    for (int64_t begin = 0; begin < piece.count; begin += kStrip) {
      const int64_t count = std::min(kStrip, piece.count - begin);
      std::array<float, kStrip> sum;
      std::copy_n(part_of(0) + begin, count, sum.data());
      for (int rank = 1; rank < ranks(); ++rank) {
        const float* const part = part_of(rank) + begin;
        for (int64_t i = 0; i < count; ++i) sum[static_cast<size_t>(i)] += part[i];
      }
      std::copy_n(sum.data(), count, data.data() + piece.begin + begin);
    }
  };
  run(total, write, read);
}

// What a rank shows is its share.
void SharedSums::gather(std::span<float> data) {
  const auto total = static_cast<int64_t>(data.size());
  const auto write = [&](int64_t round, float* mine) {
    const Piece piece = piece_of(total, rank_, round);
    std::copy_n(data.data() + piece.begin, piece.count, mine);
  };
  const auto read = [&](int64_t round, size_t parity) {
    for_others([&](int rank) {
      const Piece piece = piece_of(total, rank, round);
      std::copy_n(windows_[static_cast<size_t>(rank)]->parts[parity].data(), piece.count, data.data() + piece.begin);
    });
  };
  run(total, write, read);
}

}  // namespace pkmesh
