// SPDX-License-Identifier: Apache-2.0
// How SentencePiece is made exact. On its own it rewrites invalid UTF-8 and confuses U+2581 with a space. So text is
// first cut into runs: valid UTF-8 without control bytes and without U+2581. Runs go to SentencePiece, everything
// between them goes straight to byte tokens, and decoding is our own table of id -> bytes.
// Runs are cut again into words (spaces, then non-spaces). No piece holds a space after a non-space, so no merge
// crosses a cut, and a word's ids can be remembered: text repeats itself, and most words cost one look-up.
#include "io/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <xxhash.h>

#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "io/file.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581, SentencePiece's space
constexpr int32_t kSmallestVocabulary = 300;               // 256 bytes, 2 control pieces, and room to merge
constexpr size_t kLongestSentence = 4096;                  // for training; SentencePiece drops longer ones
constexpr size_t kLongestCachedWord = 48;
constexpr size_t kCachedWords = size_t{1} << 18;

// Length of the valid UTF-8 sequence at text[i], or 0: no overlong forms, no surrogates, nothing above U+10FFFF.
size_t utf8_length(std::string_view text, size_t i) {
  const auto byte = [&](size_t j) { return i + j < text.size() ? static_cast<uint8_t>(text[i + j]) : uint8_t{0}; };
  const auto continues = [&](size_t j) { return (byte(j) & 0xC0U) == 0x80U; };
  const uint8_t lead = byte(0);
  if (lead < 0x80U) return 1;
  if (lead < 0xC2U) return 0;
  if (lead < 0xE0U) return continues(1) ? 2 : 0;
  if (lead < 0xF0U) {
    const bool overlong = lead == 0xE0U && byte(1) < 0xA0U;
    const bool surrogate = lead == 0xEDU && byte(1) >= 0xA0U;
    return continues(1) && continues(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (lead > 0xF4U) return 0;
  const bool overlong = lead == 0xF0U && byte(1) < 0x90U;
  const bool beyond = lead == 0xF4U && byte(1) >= 0x90U;
  return continues(1) && continues(2) && continues(3) && !overlong && !beyond ? 4 : 0;
}

// Calls on_run(view) for what SentencePiece may see and on_byte(byte) for the rest, in the order of the text.
template <class OnRun, class OnByte>
void for_each_run(std::string_view text, const OnRun& on_run, const OnByte& on_byte) {
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<uint8_t>(text[i]);
    size_t length = byte < 0x80U ? 1 : utf8_length(text, i);
    const bool raw = byte < 0x20U || length == 0 || (length == 3 && text.substr(i, 3) == kSpaceSymbol);
    length = std::max<size_t>(length, 1);
    if (raw) {
      if (i > begin) on_run(text.substr(begin, i - begin));
      for (size_t j = i; j < i + length; ++j) on_byte(static_cast<uint8_t>(text[j]));
      begin = i + length;
    }
    i += length;
  }
  if (text.size() > begin) on_run(text.substr(begin));
}

// Calls on_word(view) for each stretch of spaces followed by non-spaces.
template <class OnWord>
void for_each_word(std::string_view run, const OnWord& on_word) {
  size_t begin = 0;
  for (size_t i = 1; i < run.size(); ++i) {
    if (run[i] == ' ' && run[i - 1] != ' ') {
      on_word(run.substr(begin, i - begin));
      begin = i;
    }
  }
  if (!run.empty()) on_word(run.substr(begin));
}

// The text that a piece stands for.
std::string with_spaces(std::string_view piece) {
  std::string text;
  while (!piece.empty()) {
    const bool space = piece.substr(0, 3) == kSpaceSymbol;
    text.push_back(space ? ' ' : piece[0]);
    piece.remove_prefix(space ? 3 : 1);
  }
  return text;
}

std::string hex(uint64_t value) {
  return fmt::format("{:016x}", value);
}

std::string description_of(const Tokenizer& tokenizer, std::string_view kind) {
  nlohmann::ordered_json description;
  description["kind"] = kind;
  description["hash"] = hex(tokenizer.hash());
  description["vocabulary_size"] = tokenizer.vocabulary_size();
  description["separator"] = tokenizer.separator();
  return description.dump(2) + "\n";
}

class ByteTokenizer final : public Tokenizer {
 public:
  TokenizerKind kind() const override { return TokenizerKind::kByte; }
  int32_t vocabulary_size() const override { return 257; }
  int32_t separator() const override { return 256; }
  uint64_t hash() const override {
    constexpr std::string_view kModel = "pkmesh bytes 1";
    return XXH3_64bits(kModel.data(), kModel.size());
  }

  void encode(std::string_view text, std::vector<int32_t>& ids) const override {
    ids.reserve(ids.size() + text.size());
    for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) {
      PKM_CHECK(id >= 0 && id <= 256, "token {} is not in the byte tokenizer's vocabulary", id);
      if (id < 256) text.push_back(static_cast<char>(id));
    }
    return text;
  }

  std::map<std::string, std::string> files() const override {
    return {{"tokenizer.json", description_of(*this, "byte")}};
  }
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  // `origin` names the model in the error about one that SentencePiece cannot parse.
  SentencePieceTokenizer(std::string model, const std::string& origin)
      : model_(std::move(model)), hash_(XXH3_64bits(model_.data(), model_.size())) {
    const auto status = processor_.LoadFromSerializedProto(model_);
    if (!status.ok()) user_error("{}: not a SentencePiece model; run `pkmesh tokenize` again", origin);
    const int count = processor_.GetPieceSize();
    int bytes = 0;
    for (int id = 0; id < count; ++id) {
      std::string piece = processor_.IdToPiece(id);
      if (processor_.IsByte(id)) {
        uint8_t byte = 0;  // "<0x0A>"
        if (piece.size() == 6 && std::from_chars(&piece[3], &piece[5], byte, 16).ptr == &piece[5]) ++bytes;
        byte_ids_[byte] = id;
        piece.assign(1, static_cast<char>(byte));
      } else if (processor_.IsControl(id) || processor_.IsUnknown(id)) {
        piece.clear();
      } else {
        piece = with_spaces(piece);
      }
      pieces_.push_back(std::move(piece));
    }
    if (bytes != 256 || processor_.eos_id() < 0 || processor_.IsUnknown(processor_.PieceToId(kSpaceSymbol)))
      user_error("{}: a SentencePiece model without byte fallback, separator or space; run `pkmesh tokenize` instead",
                 origin);
  }

  TokenizerKind kind() const override { return TokenizerKind::kSentencePiece; }
  int32_t vocabulary_size() const override { return static_cast<int32_t>(pieces_.size()); }
  int32_t separator() const override { return processor_.eos_id(); }
  uint64_t hash() const override { return hash_; }

  void encode(std::string_view text, std::vector<int32_t>& ids) const override {
    WordCache& cache = word_cache();
    for_each_run(
        text, [&](std::string_view run) { for_each_word(run, [&](std::string_view w) { append(w, cache, ids); }); },
        [&](uint8_t byte) { ids.push_back(byte_ids_[byte]); });
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) {
      PKM_CHECK(id >= 0 && id < vocabulary_size(), "token {} is not in the vocabulary of {}", id, vocabulary_size());
      text += pieces_[static_cast<size_t>(id)];
    }
    return text;
  }

  std::map<std::string, std::string> files() const override {
    return {{"tokenizer.json", description_of(*this, "sentencepiece")}, {"tokenizer.model", model_}};
  }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view word) const { return XXH3_64bits(word.data(), word.size()); }
  };
  // Ids of the words met on this thread, for one model at a time. Emptied when full: its size is bounded.
  struct WordCache {
    uint64_t model = 0;
    std::unordered_map<std::string, std::vector<int>, Hash, std::equal_to<>> words;
  };

  WordCache& word_cache() const {
    thread_local WordCache cache;
    if (cache.model != hash_) {
      cache.words.clear();
      cache.model = hash_;
    }
    return cache;
  }

  void append(std::string_view word, WordCache& cache, std::vector<int32_t>& ids) const {
    std::vector<int> fresh;
    const std::vector<int>* found = &fresh;
    if (const auto it = cache.words.find(word); it != cache.words.end()) {
      found = &it->second;
    } else {
      const auto status = processor_.Encode(word, &fresh);
      PKM_CHECK(status.ok(), "SentencePiece cannot encode: {}", status.ToString());
      if (word.size() <= kLongestCachedWord) {
        if (cache.words.size() >= kCachedWords) cache.words.clear();
        found = &cache.words.emplace(word, std::move(fresh)).first->second;
      }
    }
    ids.insert(ids.end(), found->begin(), found->end());
  }

  sentencepiece::SentencePieceProcessor processor_;
  std::string model_;
  uint64_t hash_;
  std::vector<std::string> pieces_;  // id -> bytes
  std::array<int32_t, 256> byte_ids_{};
};

// The runs of a sample, as the sentences that SentencePiece trains on.
class SampleSentences final : public sentencepiece::SentenceIterator {
 public:
  explicit SampleSentences(std::span<const std::string> sample) {
    for (const std::string& text : sample)
      for_each_run(
          text, [&](std::string_view run) { add(run); }, [](uint8_t) {});
    empty_ = sentences_.empty();
    sentences_.emplace_back(" ");  // the space must be learnt: spelt in bytes, its symbol would come back as U+2581
  }
  bool empty() const { return empty_; }
  bool done() const override { return next_ >= sentences_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return sentences_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  // Cuts after `<` of "<0x", so that no text can be learnt that looks like a byte piece, and where a sentence would be
  // too long. Sentences with U+2585, which SentencePiece reserves, it drops itself.
  void add(std::string_view run) {
    while (!run.empty()) {
      size_t end = std::min(run.size(), kLongestSentence);
      while (end < run.size() && end > 1 && (static_cast<uint8_t>(run[end]) & 0xC0U) == 0x80U) --end;
      if (const size_t byte_piece = run.find("<0x"); byte_piece < end) end = byte_piece + 1;
      sentences_.emplace_back(run.substr(0, end));
      run.remove_prefix(end);
    }
  }

  std::vector<std::string> sentences_;
  bool empty_ = false;
  size_t next_ = 0;
};

}  // namespace

int64_t raw_bytes(std::string_view text) {
  int64_t count = 0;
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<uint8_t>(text[i]);
    const size_t length = utf8_length(text, i);
    count += length == 0 || (byte < 0x20U && (byte < '\t' || byte > '\r'));
    i += std::max<size_t>(length, 1);
  }
  return count;
}

std::unique_ptr<Tokenizer> make_byte_tokenizer() {
  return std::make_unique<ByteTokenizer>();
}

std::unique_ptr<Tokenizer> train_tokenizer(std::span<const std::string> sample, int32_t vocabulary_size,
                                           double character_coverage, const std::string& corpus) {
  if (vocabulary_size < kSmallestVocabulary)
    user_error("tokenizer vocabulary of {}: at least {} are needed, or take the byte tokenizer", vocabulary_size,
               kSmallestVocabulary);
  SampleSentences sentences(sample);
  if (sentences.empty())
    user_error("{}: holds no text to learn a tokenizer from; take that of bytes: --set tokenizer.kind=BYTE", corpus);
  // The names of control pieces hold U+2585, which no learnt piece does: "</s>" in a corpus is plain text.
  const std::unordered_map<std::string, std::string> options = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(vocabulary_size)},
      {"hard_vocab_limit", "false"},
      {"character_coverage", fmt::format("{}", character_coverage)},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"eos_id", "0"},
      {"eos_piece", "<\xE2\x96\x85separator>"},
      {"unk_id", "1"},
      {"unk_piece", "<\xE2\x96\x85unknown>"},
      {"bos_id", "-1"},
      {"pad_id", "-1"},
      {"max_sentence_length", std::to_string(kLongestSentence)},
      {"required_chars", std::string(kSpaceSymbol)},
      {"num_threads", "2"},  // stands in the model, so it must not vary
      {"minloglevel", "4"},  // silence on standard error: what matters is in the status
  };
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &sentences, &model);
  if (!status.ok() && status.ToString().find("required_chars") != std::string::npos)
    user_error(
        "a vocabulary of {} has no room for the characters of this corpus; raise tokenizer.vocabulary or lower "
        "tokenizer.character_coverage",
        vocabulary_size);
  if (!status.ok())
    user_error("the tokenizer cannot be trained with a vocabulary of {} ({}); try another vocabulary size",
               vocabulary_size, status.ToString());
  return std::make_unique<SentencePieceTokenizer>(std::move(model), "the trained tokenizer");
}

void Tokenizer::save(const std::string& folder) const {
  for (const auto& [name, text] : files()) replace_text(fmt::format("{}/{}", folder, name), text);
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  const auto description = nlohmann::json::parse(read_text(path), nullptr, /*allow_exceptions=*/false);
  const auto text = [&](const char* key) {
    if (!description.is_object() || !description.contains(key) || !description[key].is_string())
      user_error("{}: no \"{}\" in it; run `pkmesh tokenize` again", path, key);
    return description[key].get<std::string>();
  };
  const auto check_hash = [&](const std::string& file, uint64_t hash) {
    if (hex(hash) != text("hash"))
      user_error("{}: its hash is {}, tokenizer.json says {}; one of the two was changed or damaged", file, hex(hash),
                 text("hash"));
  };
  const std::string kind = text("kind");
  if (kind == "byte") {
    auto tokenizer = make_byte_tokenizer();
    check_hash("the byte tokenizer", tokenizer->hash());
    return tokenizer;
  }
  if (kind != "sentencepiece")
    user_error("{}: unknown kind \"{}\" (byte, sentencepiece); was it written by a newer pkmesh?", path, kind);
  const std::string file = folder + "/tokenizer.model";
  std::string model = read_text(file);
  check_hash(file, XXH3_64bits(model.data(), model.size()));  // before a damaged one is parsed
  return std::make_unique<SentencePieceTokenizer>(std::move(model), file);
}

}  // namespace pkmesh
