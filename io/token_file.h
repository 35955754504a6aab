// SPDX-License-Identifier: Apache-2.0
// Tokens on disk. A folder holds the tokenizer, corpus.json (what went in), and shards of two splits:
// train-00000.tok, train-00001.tok, ..., valid-00000.tok, ... In order, the shards of a split are one long sequence.
//
// A shard is a header of 128 bytes; the ids, little-endian, 2 bytes each if the vocabulary fits in 65,536, else 4;
// zeros up to a multiple of 8; and the checksums (XXH3, u64) of the ids, one for each block of 65,536 bytes:
//   0 magic "PKMTOKEN" | 8 version u32 | 12 bytes per token u32 | 16 tokenizer hash u64 | 24 vocabulary size u64
//   32 tokens u64 | 40 bytes of text u64 | 48 words of text u64 | 56 XXH3 of the checksums u64 | 64 shard's index u64
//   72 one in the split's last shard, else zero u64 | 80 zeros | 120 XXH3 of the header's first 120 bytes u64
// Shards are read through memory maps: opening looks at headers and sizes only, whatever the corpus's size, ranks on
// one host share the pages, and a block is held against its checksum when it is first read.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer.h"

namespace pkmesh {

// Sizes of a piece of text, for perplexity per word and bits per byte. Words are what whitespace separates (wc -w).
struct TextSize {
  int64_t bytes = 0;
  int64_t words = 0;
};
TextSize text_size(std::string_view text);

// Writes the shards of one split into an existing folder, in bounded memory. Each shard has a temporary name until it
// is complete; what was not finished is removed. Throws UserError if the disk does not take it.
class TokenWriter {
 public:
  TokenWriter(std::string folder, std::string split, const Tokenizer& tokenizer, int64_t shard_tokens);
  ~TokenWriter();
  TokenWriter(const TokenWriter&) = delete;
  TokenWriter& operator=(const TokenWriter&) = delete;

  // Appends ids and the size of the text they stand for, which counts in the shard where the ids begin.
  void append(std::span<const int32_t> ids, TextSize text);
  // Completes the last shard; a split without tokens still gets one, empty. Call it once, at the end.
  void finish();

  int64_t count() const { return count_; }    // tokens so far
  int64_t shards() const { return shards_; }  // completed so far
  TextSize text() const { return text_; }

 private:
  class Shard;
  void open_shard();
  void close_shard(bool last);

  std::string folder_;
  std::string split_;
  uint64_t tokenizer_hash_;
  int32_t vocabulary_size_;
  int64_t shard_tokens_;
  std::unique_ptr<Shard> shard_;
  int64_t shards_ = 0;
  int64_t count_ = 0;
  TextSize text_;
};

// One split, as one read-only sequence of ids. Any thread may read. Cheap to copy: copies share the maps.
class Tokens {
 public:
  // Whether the folder has any shard of the split.
  static bool exist(const std::string& folder, const std::string& split);
  // Opens every shard of `split` ("train", "valid"). UserError if there is none, one is missing, truncated, damaged in
  // its header, or of another tokenizer than `tokenizer_hash` says (0: whatever they all agree on).
  static Tokens open(const std::string& folder, const std::string& split, uint64_t tokenizer_hash = 0);

  int64_t count() const { return starts_.back(); }
  TextSize text() const { return text_; }
  int32_t vocabulary_size() const { return vocabulary_size_; }
  uint64_t tokenizer_hash() const { return tokenizer_hash_; }
  // Equal for the same ids in the same shards, from their headers alone.
  uint64_t fingerprint() const { return fingerprint_; }

  // out[i] = token begin + i, across shards. The range must lie in [0, count()). UserError that names the shard if the
  // ids are not those that were written.
  void read(int64_t begin, std::span<int32_t> out) const;
  // Reads part `part` of `parts` of the ids once, so that damage shows now.
  void verify(int part = 0, int parts = 1) const;
  int64_t bytes() const { return bytes_; }  // of the ids on disk, all shards

 private:
  class Shard;
  Tokens() = default;

  std::vector<std::shared_ptr<const Shard>> shards_;
  std::vector<int64_t> starts_ = {0};  // of each shard, then the total
  TextSize text_;
  int64_t bytes_ = 0;
  int32_t vocabulary_size_ = 0;
  uint64_t tokenizer_hash_ = 0;
  uint64_t fingerprint_ = 0;
};

}  // namespace pkmesh
