// SPDX-License-Identifier: Apache-2.0
// What counting alone achieves on the validation tokens: the perplexities that a model must beat to have learnt more
// than frequencies.
//   unigram  absolute discounting over the uniform distribution
//   bigram   interpolated Kneser-Ney (Kneser and Ney, "Improved backing-off for m-gram language modeling", ICASSP 1995;
//            interpolated as in Chen and Goodman, "An empirical study of smoothing techniques", 1998, section 3),
//            its lower order discounted over the uniform distribution
// Discounts are n1 / (n1 + 2 n2), with n1 and n2 the numbers of counts that are one and two.
#pragma once

#include <cstdint>

#include "io/token_file.h"

namespace pkmesh {

struct NgramBaseline {
  double unigram_perplexity = 0;  // per token, of what EvaluationWindows predicts: not of the very first
  double bigram_perplexity = 0;
};

// Perplexities over validation tokens 1 to `predicted` (token 0 is never predicted). Counts all training tokens, or
// `most_tokens` of them in evenly spread pieces. Memory: at most 64 bytes per distinct pair. UserError if there are no
// training tokens, fewer than two validation tokens, or their tokenizers differ.
NgramBaseline ngram_baseline(const Tokens& train, const Tokens& valid, int64_t predicted,
                             int64_t most_tokens = int64_t{32} << 20);

}  // namespace pkmesh
