// SPDX-License-Identifier: Apache-2.0
#include "io/batches.h"

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "runtime/check.h"
#include "runtime/random.h"

namespace pkmesh {
namespace {

// Piece i of [range.begin, range.end) cut into `pieces`.
SequenceRange piece_of(SequenceRange range, int64_t i, int64_t pieces) {
  return {range.begin + range.count() * i / pieces, range.begin + range.count() * (i + 1) / pieces};
}

void check_batch(SequenceRange range, int64_t context, const Matrix<int32_t>& inputs, const Matrix<int32_t>& targets) {
  PKM_CHECK(range.begin >= 0 && range.end >= range.begin, "sequences [{}, {})", range.begin, range.end);
  check_shape("batch: inputs", inputs, {{"sequences", range.count()}, {"context", context}});
  check_shape("batch: targets", targets, {{"sequences", range.count()}, {"context", context}});
}

}  // namespace

SequenceRange BatchShape::micro_step(int64_t step, int64_t micro) const {
  PKM_CHECK(step >= 0 && micro >= 0 && micro < accumulate, "micro-step {} of {}, step {}", micro, accumulate, step);
  return piece_of({step * sequences, (step + 1) * sequences}, micro, accumulate);
}

SequenceRange BatchShape::share(int64_t step, int64_t micro) const {
  PKM_CHECK(rank >= 0 && rank < ranks, "rank {} of {}", rank, ranks);
  return piece_of(micro_step(step, micro), rank, ranks);
}

int64_t BatchShape::largest_share() const {
  const int64_t micro = (sequences + accumulate - 1) / accumulate;
  return (micro + ranks - 1) / ranks;
}

Permutation::Permutation(int64_t size, uint64_t seed, int64_t epoch)
    : random_(seed, "order of windows", epoch), size_(size) {
  PKM_CHECK(size > 0, "a permutation of {}", size);
  half_bits_ = std::max<int>((std::bit_width(static_cast<uint64_t>(size - 1)) + 1) / 2, 1);
}

// Each round mixes one half with random bits that the other half selects, which can be undone: a bijection.
uint64_t Permutation::encipher(uint64_t value) const {
  constexpr uint64_t kRounds = 6;
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_;
  uint64_t right = value & mask;
  for (uint64_t round = 0; round < kRounds; ++round)
    left = std::exchange(right, left ^ (random_.bits(round << 32 | right) & mask));
  return left << half_bits_ | right;
}

int64_t Permutation::operator()(int64_t index) const {
  PKM_CHECK(index >= 0 && index < size_, "index {} of a permutation of {}", index, size_);
  auto value = static_cast<uint64_t>(index);
  do {
    value = encipher(value);
  } while (value >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(value);
}

// One window fewer than fit, where several do, so that the offset has a whole window's room.
BatchSampler::BatchSampler(Tokens tokens, int64_t context, uint64_t seed)
    : tokens_(std::move(tokens)), context_(context), seed_(seed) {
  PKM_CHECK(context > 0, "context of {} tokens", context);
  const int64_t fit = (tokens_.count() - 1) / context_;
  if (tokens_.count() < 1 || fit < 1)
    user_error("the corpus has {} tokens, a sequence needs {}; take a longer corpus or a smaller context",
               tokens_.count(), context_ + 1);
  windows_ = std::max<int64_t>(fit - 1, 1);
}

int64_t BatchSampler::start_of(int64_t g) const {
  const int64_t epoch = g / windows_;
  const int64_t room = std::min(tokens_.count() - 1 - windows_ * context_, context_ - 1);
  const auto offset =
      static_cast<int64_t>(Random(seed_, "offset of windows", epoch).bits(0) * (uint64_t(room) + 1) >> 32);
  return offset + Permutation(windows_, seed_, epoch)(g % windows_) * context_;
}

void BatchSampler::fill(SequenceRange range, Matrix<int32_t> inputs, Matrix<int32_t> targets) const {
  check_batch(range, context_, inputs, targets);
  for (int64_t i = 0; i < range.count(); ++i) {
    const int64_t start = start_of(range.begin + i);
    tokens_.read(start, inputs[i].flat());
    tokens_.read(start + 1, targets[i].flat());
  }
}

EvaluationWindows::EvaluationWindows(Tokens tokens, int64_t context) : tokens_(std::move(tokens)), context_(context) {
  PKM_CHECK(context > 0, "context of {} tokens", context);
  if (tokens_.count() < 2)
    user_error("{} validation tokens are too few; tokenize a longer corpus or set aside a larger share of it",
               tokens_.count());
}

int64_t EvaluationWindows::length(int64_t window) const {
  return std::min(context_, targets() - window * context_);
}

void EvaluationWindows::fill(SequenceRange range, Matrix<int32_t> inputs, Matrix<int32_t> targets) const {
  if (range.count() == 0) return;
  PKM_CHECK(range.end <= count() && length(range.begin) == length(range.end - 1),
            "windows [{}, {}) of {}, or not as long", range.begin, range.end, count());
  check_batch(range, length(range.begin), inputs, targets);
  for (int64_t i = 0; i < range.count(); ++i) {
    const int64_t start = (range.begin + i) * context_;
    tokens_.read(start, inputs[i].flat());
    tokens_.read(start + 1, targets[i].flat());
  }
}

}  // namespace pkmesh
