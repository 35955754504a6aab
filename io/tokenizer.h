// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back: decode(encode(text)) == text, byte for byte, for any bytes whatever.
// Nothing is unknown: what the vocabulary lacks is spelt in byte tokens.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pkmesh {

enum class TokenizerKind { kSentencePiece, kByte };

// Immutable after construction; every method may be called from any thread.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual TokenizerKind kind() const = 0;
  virtual int32_t vocabulary_size() const = 0;
  // Stands between documents, so it both begins and ends one (bos and eos). encode() never returns it.
  virtual int32_t separator() const = 0;
  // xxHash of the model: equal hashes mean equal tokens. Token files and checkpoints carry it.
  virtual uint64_t hash() const = 0;

  // Appends the ids of `text` to `ids`. Text cut just after a newline gives the same ids in pieces as whole.
  virtual void encode(std::string_view text, std::vector<int32_t>& ids) const = 0;
  // The bytes behind the ids; the separator stands for none. Throws InternalError on an id outside the vocabulary.
  virtual std::string decode(std::span<const int32_t> ids) const = 0;
  // What load_tokenizer() reads: tokenizer.json, and tokenizer.model where there is one, by name.
  virtual std::map<std::string, std::string> files() const = 0;

  // Writes files() into an existing folder.
  void save(const std::string& folder) const;

  std::vector<int32_t> encode(std::string_view text) const {
    std::vector<int32_t> ids;
    encode(text, ids);
    return ids;
  }
};

// 256 bytes and the separator.
std::unique_ptr<Tokenizer> make_byte_tokenizer();

// Byte-pair encoding (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016) by
// SentencePiece with byte fallback. `sample` is text of any kind; characters beyond `character_coverage` of it get no
// piece of their own. The vocabulary may come out smaller than asked for if the sample has too few distinct words. The
// same sample gives the same model. UserError if the sample holds no text (of `corpus`, which it names), or if the
// vocabulary is too small for the characters of the sample.
std::unique_ptr<Tokenizer> train_tokenizer(std::span<const std::string> sample, int32_t vocabulary_size,
                                           double character_coverage = 0.9995,
                                           const std::string& corpus = "the corpus");

// How many bytes of a text are not valid UTF-8, or are control characters other than white space: what stands for no
// character that a person reads, and gets a byte token each.
int64_t raw_bytes(std::string_view text);

// From what save() wrote. UserError if a file is missing, unreadable, or not what tokenizer.json says.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& folder);

}  // namespace pkmesh
