// SPDX-License-Identifier: Apache-2.0
// Token files for tests, of ids that no real tokenizer made.
#pragma once

#include "io/token_file.h"

namespace pkmesh {

// A tokenizer only in size and hash: token files need no more of one.
class SizedTokenizer final : public Tokenizer {
 public:
  SizedTokenizer(int32_t size, uint64_t hash) : size_(size), hash_(hash) {}
  TokenizerKind kind() const override { return TokenizerKind::kByte; }
  int32_t vocabulary_size() const override { return size_; }
  int32_t separator() const override { return 0; }
  uint64_t hash() const override { return hash_; }
  void encode(std::string_view, std::vector<int32_t>&) const override {}
  std::string decode(std::span<const int32_t>) const override { return {}; }
  std::map<std::string, std::string> files() const override { return {}; }

 private:
  int32_t size_;
  uint64_t hash_;
};

// The ids as a split of `folder`, opened; each counts as two bytes of text.
inline Tokens written_tokens(const std::string& folder, const std::vector<int32_t>& ids, int32_t vocabulary_size,
                             int64_t shard_tokens = 1 << 20, const std::string& split = "train") {
  TokenWriter writer(folder, split, SizedTokenizer(vocabulary_size, 7), shard_tokens);
  writer.append(ids, {.bytes = 2 * static_cast<int64_t>(ids.size()), .words = 1});
  writer.finish();
  return Tokens::open(folder, split);
}

}  // namespace pkmesh
