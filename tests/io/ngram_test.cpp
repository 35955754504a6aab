// SPDX-License-Identifier: Apache-2.0
#include "io/ngram.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "runtime/check.h"
#include "runtime/random.h"
#include "tests/io/temporary_folder.h"
#include "tests/io/written_tokens.h"

namespace pkmesh {
namespace {

// A chain: the next token is often the one after, so that pairs tell something.
std::vector<int32_t> chain(int64_t count, int32_t vocabulary_size, uint64_t seed) {
  const Random random(seed, "ngram test");
  std::vector<int32_t> ids = {0};
  for (uint64_t i = 1; i < static_cast<uint64_t>(count); ++i) {
    const uint32_t bits = random.bits(i);
    const auto size = static_cast<uint32_t>(vocabulary_size);
    ids.push_back(bits % 3 != 0 ? (ids.back() * 2 + 1) % vocabulary_size
                                : static_cast<int32_t>((bits >> 8) % size * ((bits >> 4) % size) / size));
  }
  return ids;
}

// The same model, straight from the formulas: sets and maps, nothing shared with the program.
struct Reference {
  const std::vector<int32_t>& train;
  int32_t size;

  static double discount(const std::map<std::pair<int32_t, int32_t>, double>& counts) {
    double ones = 0;
    double twos = 0;
    for (const auto& [key, count] : counts) {
      ones += count == 1;
      twos += count == 2;
    }
    return ones == 0 ? 0.5 : ones / (ones + 2 * twos);
  }

  double over_uniform(const std::map<std::pair<int32_t, int32_t>, double>& counts, int32_t w) const {
    double total = 0;
    for (const auto& [key, count] : counts) total += count;
    const double d = discount(counts);
    const auto found = counts.find({0, w});
    const double own = found == counts.end() ? 0 : std::max(found->second - d, 0.0);
    return own / total + d * static_cast<double>(counts.size()) / total / size;
  }

  double unigram(int32_t w) const {
    std::map<std::pair<int32_t, int32_t>, double> counts;
    for (const int32_t id : train) ++counts[{0, id}];
    return over_uniform(counts, w);
  }

  double bigram(int32_t h, int32_t w) const {
    std::map<std::pair<int32_t, int32_t>, double> pairs;
    std::map<std::pair<int32_t, int32_t>, double> predecessors;
    for (size_t i = 1; i < train.size(); ++i) ++pairs[{train[i - 1], train[i]}];
    double history = 0;
    double followers = 0;
    for (const auto& [pair, count] : pairs) {
      ++predecessors[{0, pair.second}];
      if (pair.first == h) {
        history += count;
        ++followers;
      }
    }
    const double lower = over_uniform(predecessors, w);
    if (history == 0) return lower;
    const double d = discount(pairs);
    const auto found = pairs.find({h, w});
    const double own = found == pairs.end() ? 0 : std::max(found->second - d, 0.0);
    return own / history + d * followers / history * lower;
  }
};

TEST(Ngram, AgreesWithTheFormulas) {
  const TemporaryFolder folder;
  for (const int64_t count : {1, 2, 30, 300}) {
    const auto train = chain(count, 19, 1);
    const auto valid = chain(60, 21, 2);  // with tokens that training has not seen
    const Tokens train_tokens = written_tokens(folder.path(), train, 21, 100);
    const Tokens valid_tokens = written_tokens(folder.path(), valid, 21, 17, "valid");
    for (const int64_t predicted : {1, 20, 59}) {
      const NgramBaseline baseline = ngram_baseline(train_tokens, valid_tokens, predicted);
      const Reference reference{train, 21};
      double unigram = 0;
      double bigram = 0;
      for (size_t i = 1; i <= static_cast<size_t>(predicted); ++i) {
        unigram -= std::log(reference.unigram(valid[i]));
        if (count > 1) bigram -= std::log(reference.bigram(valid[i - 1], valid[i]));
      }
      if (count == 1) bigram = unigram;  // no pair was seen
      EXPECT_NEAR(baseline.unigram_perplexity / std::exp(unigram / static_cast<double>(predicted)), 1, 1e-9);
      EXPECT_NEAR(baseline.bigram_perplexity / std::exp(bigram / static_cast<double>(predicted)), 1, 1e-9);
    }
  }
}

TEST(Ngram, ProbabilitiesSumToOne) {
  const auto train = chain(300, 19, 1);
  const Reference reference{train, 21};
  for (const int32_t h : {0, 3, 20}) {
    double unigram = 0;
    double bigram = 0;
    for (int32_t w = 0; w < 21; ++w) {
      unigram += reference.unigram(w);
      bigram += reference.bigram(h, w);
    }
    EXPECT_NEAR(unigram, 1, 1e-12);
    EXPECT_NEAR(bigram, 1, 1e-12);
  }
}

// A cycle has one follower per token. Four times around, and the first token once more: over the borders of pieces no
// pair may be lost and no token be counted twice. Of 2^16 tokens, the first piece, most pairs are there once.
TEST(Ngram, ALongChainIsLearntWhole) {
  const TemporaryFolder folder;
  std::vector<int32_t> cycle(200001);
  for (size_t i = 0; i < cycle.size(); ++i) cycle[i] = static_cast<int32_t>(i % 50000);
  const Tokens train = written_tokens(folder.path(), cycle, 50000, 70000);
  const NgramBaseline all = ngram_baseline(train, train, train.count() - 1);
  // No count is one: half is taken from each, and given back evenly to tokens that were all seen.
  const double unigram = 200001 / (std::pow(4, 49999.0 / 50000) * std::pow(5, 1.0 / 50000));
  EXPECT_NEAR(all.unigram_perplexity / unigram, 1, 1e-9);
  EXPECT_NEAR(all.bigram_perplexity, 4 / (3.5 + 0.5 / 50000), 1e-9);
  const NgramBaseline some = ngram_baseline(train, train, train.count() - 1, 1 << 16);
  const double twice = (1 << 16) - 1 - 50000;
  const double once = 50000 - twice;
  const double discount = once / (once + 2 * twice);
  const double bigram =
      once * std::log(1 - discount + discount / 50000) + twice * std::log((2 - discount + discount / 50000) / 2);
  EXPECT_NEAR(some.bigram_perplexity, std::exp(-bigram / 50000), 1e-9);
}

TEST(Ngram, MistakesAreTheUsersErrors) {
  const TemporaryFolder folder;
  const Tokens some = written_tokens(folder.path(), {1, 2, 3}, 21);
  const Tokens one = written_tokens(folder.path(), {1}, 21, 100, "one");
  const Tokens none = written_tokens(folder.path(), {}, 21, 100, "none");
  EXPECT_THROW(ngram_baseline(none, some, 1), UserError);
  EXPECT_THROW(ngram_baseline(some, one, 1), UserError);
  EXPECT_NO_THROW(ngram_baseline(one, some, 1));
  TokenWriter writer(folder.path(), "other", SizedTokenizer(21, 8), 100);
  writer.append(std::vector<int32_t>{1, 2, 3}, {});
  writer.finish();
  EXPECT_THROW(ngram_baseline(some, Tokens::open(folder.path(), "other"), 1), UserError);
}

}  // namespace
}  // namespace pkmesh
