// SPDX-License-Identifier: Apache-2.0
#include "io/ngram.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>
#include <vector>

#include "runtime/check.h"

namespace pkmesh {
namespace {

constexpr int64_t kPieceTokens = 1 << 16;

// Counts of token pairs: open addressing with linear probing, at most half full.
class PairCounts {
 public:
  PairCounts() : slots_(1 << 12) {}

  void add(int32_t first, int32_t second) {
    if (2 * size_ >= static_cast<int64_t>(slots_.size())) grow();
    Slot& slot = slots_[find(key_of(first, second))];
    if (slot.count == 0) {
      slot.key = key_of(first, second);
      ++size_;
    }
    ++slot.count;
  }

  int64_t of(int32_t first, int32_t second) const { return slots_[find(key_of(first, second))].count; }
  int64_t size() const { return size_; }

  template <class Visit>
  void for_each(const Visit& visit) const {
    for (const Slot& slot : slots_)
      if (slot.count > 0)
        visit(static_cast<size_t>(slot.key >> 32), static_cast<size_t>(slot.key & 0xFFFFFFFFU), slot.count);
  }

 private:
  struct Slot {
    uint64_t key = 0;
    int64_t count = 0;  // zero: free
  };

  static uint64_t key_of(int32_t first, int32_t second) {
    return uint64_t{static_cast<uint32_t>(first)} << 32 | static_cast<uint32_t>(second);
  }

  // Where the key is, or the free slot where it belongs.
  size_t find(uint64_t key) const {
    const size_t mask = slots_.size() - 1;
    size_t at = static_cast<size_t>(key * 0x9E3779B97F4A7C15U >> (64 - std::bit_width(mask)));
    while (slots_[at].count != 0 && slots_[at].key != key) at = (at + 1) & mask;
    return at;
  }

  void grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old)
      if (slot.count > 0) slots_[find(slot.key)] = slot;
  }

  std::vector<Slot> slots_;  // a power of two
  int64_t size_ = 0;
};

// How many counts are one and two; from them the share of each count that is kept for what was not seen.
struct Discount {
  double ones = 0;
  double twos = 0;
  void see(int64_t count) {
    ones += count == 1;
    twos += count == 2;
  }
  double value() const { return ones > 0 ? ones / (ones + 2 * twos) : 0.5; }
};

// counts, discounted, over the uniform distribution: no probability is zero.
std::vector<double> smoothed(const std::vector<int64_t>& counts) {
  Discount discount;
  double total = 0;
  double seen = 0;
  for (const int64_t count : counts) {
    discount.see(count);
    total += static_cast<double>(count);
    seen += count > 0;
  }
  const double taken = discount.value();
  std::vector<double> probability(counts.size());
  const double uniform = taken * seen / total / static_cast<double>(counts.size());
  for (size_t i = 0; i < counts.size(); ++i)
    probability[i] = std::max(static_cast<double>(counts[i]) - taken, 0.0) / total + uniform;
  return probability;
}

struct Model {
  explicit Model(int32_t vocabulary_size)
      : tokens(static_cast<size_t>(vocabulary_size)), histories(tokens.size()), followers(tokens.size()) {}

  std::vector<int64_t> tokens;     // how often each was seen
  std::vector<int64_t> histories;  // how often each was followed by another
  std::vector<int64_t> followers;  // by how many different ones
  std::vector<double> unigram;
  std::vector<double> continuation;  // by how many different ones each is preceded, as a probability
  PairCounts pairs;
  double discount = 0;

  void add(std::span<const int32_t> ids) {
    for (size_t i = 0; i < ids.size(); ++i) {
      ++tokens[static_cast<size_t>(ids[i])];
      if (i + 1 == ids.size()) break;
      ++histories[static_cast<size_t>(ids[i])];
      pairs.add(ids[i], ids[i + 1]);
    }
  }

  void finish() {
    unigram = smoothed(tokens);
    std::vector<int64_t> predecessors(tokens.size());
    Discount pair_discount;
    pairs.for_each([&](size_t first, size_t second, int64_t count) {
      ++followers[first];
      ++predecessors[second];
      pair_discount.see(count);
    });
    discount = pair_discount.value();
    continuation = pairs.size() > 0 ? smoothed(predecessors) : unigram;
  }

  double bigram(int32_t first, int32_t second) const {
    const auto history = static_cast<double>(histories[static_cast<size_t>(first)]);
    const double lower = continuation[static_cast<size_t>(second)];
    if (history == 0) return lower;
    const double kept = std::max(static_cast<double>(pairs.of(first, second)) - discount, 0.0);
    return (kept + discount * static_cast<double>(followers[static_cast<size_t>(first)]) * lower) / history;
  }
};

Model count_tokens(const Tokens& train, int64_t most_tokens) {
  Model model(train.vocabulary_size());
  const bool all = train.count() <= most_tokens;
  const int64_t pieces =
      all ? (train.count() + kPieceTokens - 1) / kPieceTokens : std::max<int64_t>(most_tokens / kPieceTokens, 1);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < pieces; ++i) {
    // All: pieces that meet, each with the first token of the next, so that no pair is lost.
    const int64_t begin = all ? i * kPieceTokens : (train.count() - kPieceTokens) * i / pieces;
    const int64_t own = std::min(kPieceTokens, train.count() - begin);
    const bool joined = all && begin + own < train.count();
    ids.resize(static_cast<size_t>(own + joined));
    train.read(begin, ids);
    model.add(ids);
    if (joined) --model.tokens[static_cast<size_t>(ids.back())];  // it is counted with its own piece
  }
  model.finish();
  return model;
}

}  // namespace

NgramBaseline ngram_baseline(const Tokens& train, const Tokens& valid, int64_t predicted, int64_t most_tokens) {
  PKM_CHECK(most_tokens >= kPieceTokens, "{} tokens are too few to count", most_tokens);
  if (train.count() < 1 || valid.count() < 2)
    user_error("no baseline from {} training and {} validation tokens; tokenize a longer corpus", train.count(),
               valid.count());
  if (train.tokenizer_hash() != valid.tokenizer_hash())
    user_error("training tokens are of tokenizer {:016x}, validation tokens of {:016x}; tokenize both with one",
               train.tokenizer_hash(), valid.tokenizer_hash());
  PKM_CHECK(predicted >= 1 && predicted < valid.count(), "{} of {} tokens to predict", predicted, valid.count());
  const Model model = count_tokens(train, most_tokens);

  double unigram = 0;  // sums of -log p
  double bigram = 0;
  std::vector<int32_t> ids;
  for (int64_t begin = 0; begin < predicted; begin += kPieceTokens) {
    ids.resize(static_cast<size_t>(std::min(kPieceTokens, predicted - begin) + 1));
    valid.read(begin, ids);
    for (size_t i = 1; i < ids.size(); ++i) {
      unigram -= std::log(model.unigram[static_cast<size_t>(ids[i])]);
      bigram -= std::log(model.bigram(ids[i - 1], ids[i]));
    }
  }
  const auto count = static_cast<double>(predicted);
  return {std::exp(unigram / count), std::exp(bigram / count)};
}

}  // namespace pkmesh
