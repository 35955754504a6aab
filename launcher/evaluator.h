// SPDX-License-Identifier: Apache-2.0
// Evaluation: each validation token predicted once, in windows spread over the ranks; sums over all ranks.
#pragma once

#include <algorithm>
#include <functional>
#include <optional>
#include <vector>

#include "io/batches.h"
#include "launcher/model.h"

namespace pkmesh {

struct Evaluation {
  double loss = 0;  // mean over the tokens, nats
  int64_t tokens = 0;
  int64_t sequences = 0;
  bool whole = false;                  // all sequences that there are
  std::vector<MemoryHealth> memories;  // one per value table, over this evaluation's reads
  double perplexity() const;
  // exp(nats per word): comparable between tokenizers. `text` is the size of the whole text that `all_tokens` stand
  // for, so that these have a meaning for a whole evaluation only.
  double perplexity_per_word(TextSize text, int64_t all_tokens) const;
  double bits_per_byte(TextSize text, int64_t all_tokens) const;
};

// Windows that `pkmesh eval` has a rank read at a time: of some 8192 tokens.
constexpr int64_t windows_at_once(int64_t context) {
  return std::max<int64_t>(1, 8192 / context);
}

// Reads `sequences` windows from the beginning, or all if 0; each rank `at_once` at a time, which changes the memory
// that is needed (no more than as many take in training) and rounding, nothing else. Collective. Empties the tables'
// usage counters first. Nothing if stop(), asked before each pass, says so: the same on all ranks.
std::optional<Evaluation> evaluate(Model& model, const Tokens& tokens, int64_t sequences, int64_t at_once,
                                   const std::function<bool()>& stop = {});

}  // namespace pkmesh
