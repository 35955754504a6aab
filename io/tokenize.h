// SPDX-License-Identifier: Apache-2.0
// From text files to a folder that trains: a tokenizer, token files of the splits "train" and "valid", and corpus.json,
// which says what went in. The corpus may be larger than memory; it is read twice. What comes out depends on the text
// and the options, never on the thread count. The folder appears complete or not at all.
//
// Validation text is a share of the corpus's blocks (up to 64 KiB of whole lines, less where the corpus is small),
// drawn at random; the tokenizer is trained without it. In each split the separator stands before every file and
// wherever text was left out, so that no sequence runs over a seam unmarked.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "io/token_file.h"
#include "io/tokenizer.h"

namespace pkmesh {

struct TokenizeProgress {
  const char* phase;  // "reading", "learning", "encoding"
  int64_t done;       // bytes on disk; learning reports nothing between its beginning and its end
  int64_t total;
};

struct TokenizeOptions {
  std::vector<std::string> inputs;  // text, or gzipped text; "-" is standard input
  std::string folder;               // to be made; an empty one may be there already
  std::string tokenizer_folder;     // its tokenizer is taken; empty: one is trained
  TokenizerKind kind = TokenizerKind::kSentencePiece;
  int32_t vocabulary_size = 32000;
  double character_coverage = 0.9995;
  int64_t training_bytes = int64_t{64} << 20;  // of text, spread evenly, to train the tokenizer on
  double validation_share = 0.01;              // of the blocks; above zero, at least one if there are two
  uint64_t seed = 1;                           // of the choice of blocks
  int64_t shard_tokens = int64_t{256} << 20;
  int threads = 0;                                        // 0: all cores
  std::function<void(const TokenizeProgress&)> progress;  // called often, on the calling thread
};

struct SplitSummary {
  int64_t tokens = 0;
  int64_t shards = 0;
  TextSize text;
};

struct TokenizeSummary {
  TokenizerKind tokenizer_kind = TokenizerKind::kSentencePiece;
  int32_t vocabulary_size = 0;
  uint64_t tokenizer_hash = 0;
  SplitSummary train;
  SplitSummary valid;
  int64_t raw_bytes = 0;  // of the text, that are no UTF-8 or control characters: each a token of its own
  double learning_seconds = 0;
  double encoding_seconds = 0;
};

// UserError for what the user can mend: a missing or damaged input, an empty corpus, a folder that is not empty, a full
// disk, options that contradict each other.
TokenizeSummary tokenize(const TokenizeOptions& options);

}  // namespace pkmesh
