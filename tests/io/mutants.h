// SPDX-License-Identifier: Apache-2.0
// Damage that repeats, for parsers of foreign bytes: whatever they are given, they succeed or throw one UserError.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/check.h"
#include "runtime/random.h"

namespace pkmesh {

// Mutant i of a text. The first are its truncations, evenly spread if it is long; then bits flip, and pieces are
// overwritten by `words`, by bytes, by other pieces of the text, or dropped.
class Mutants {
 public:
  Mutants(std::string original, std::vector<std::string> words, size_t truncations = 300)
      : original_(std::move(original)),
        words_(std::move(words)),
        truncations_(std::min(truncations, original_.size())) {}

  std::string operator()(size_t i) const {
    if (i < truncations_) return original_.substr(0, original_.size() * i / truncations_);
    std::string text = original_;
    const auto kinds = random_.block(2 * i);
    const auto places = random_.block(2 * i + 1);
    for (uint32_t edit = 0; edit <= kinds[0] % 3; ++edit) {
      if (text.empty()) break;
      const size_t at = places[edit] % text.size();
      const size_t from = (places[edit] >> 8) % text.size();
      const uint32_t kind = kinds[1] >> (8 * edit);
      const size_t length = 1 + (kinds[2] >> (8 * edit)) % 16;
      switch (words_.empty() ? kind % 4 : kind % 6) {
        case 0:
          text[at] = static_cast<char>(text[at] ^ (1 << (kinds[3] >> (4 * edit)) % 8));
          break;
        case 1:
          text[at] = static_cast<char>(kinds[3] >> (8 * edit));
          break;
        case 2:
          text.erase(at, length);
          break;
        case 3:
          text.replace(at, std::min(length, text.size() - at), text.substr(from, length));
          break;
        default: {
          const std::string& word = words_[kinds[3] % words_.size()];
          text.replace(at, std::min(word.size(), text.size() - at), word);
        }
      }
    }
    return text;
  }

 private:
  std::string original_;
  std::vector<std::string> words_;
  size_t truncations_;
  Random random_{1, "mutants"};
};

// Whether work() succeeded. A UserError of one line is the only other outcome that is none of our bugs.
template <class Work>
bool survives(const Work& work) {
  try {
    work();
    return true;
  } catch (const UserError& error) {
    const std::string line = error.what();
    EXPECT_FALSE(line.empty());
    EXPECT_LT(line.size(), 1000U) << line;
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
    return false;
  }
}

// Puts every one of `count` mutants where `place` says and tries `work`; how many were refused.
template <class Place, class Work>
int refused(const Mutants& mutants, size_t count, const Place& place, const Work& work) {
  int refusals = 0;
  for (size_t i = 0; i < count; ++i) {
    SCOPED_TRACE("mutant " + std::to_string(i));
    place(mutants(i));
    refusals += survives(work) ? 0 : 1;
    if (testing::Test::HasFailure()) break;
  }
  return refusals;
}

}  // namespace pkmesh
