// SPDX-License-Identifier: Apache-2.0
// Two passes over the same blocks: the first draws the validation blocks and the tokenizer's sample, the second
// encodes. Between them only block numbers count, so nothing of the corpus need be held.
#include "io/tokenize.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "io/corpus.h"
#include "io/file.h"
#include "io/ordered_workers.h"
#include "runtime/check.h"
#include "runtime/random.h"

namespace pkmesh {
namespace {

namespace fs = std::filesystem;

bool is_mount_point(const fs::path& folder) {
  struct statx status {};
  return ::statx(AT_FDCWD, folder.c_str(), 0, 0, &status) == 0 &&
         (status.stx_attributes_mask & status.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
}

// The folder under its temporary name, removed unless publish() was reached.
class PartialFolder {
 public:
  explicit PartialFolder(const std::string& folder) {
    std::error_code error;
    final_ = fs::weakly_canonical(folder, error);               // through links
    if (!final_.has_filename()) final_ = final_.parent_path();  // "out/"
    if (error || final_.empty()) user_error("{}: cannot be written: {}; choose another --out", folder, error.message());
    refuse_dangling_link(final_.string());
    partial_ = final_.string() + ".partial";
    if (fs::exists(final_, error) && !(fs::is_directory(final_, error) && fs::is_empty(final_, error)))
      user_error("{}: already exists and is not an empty folder; choose another --out or remove it", folder);
    if (fs::equivalent(final_, fs::current_path(error), error))
      user_error("{}: is the current folder; choose another --out, such as {}/tokens", folder, folder);
    if (is_mount_point(final_))
      user_error("{}: is a mount point, whose place no folder can take; choose a folder in it, such as {}/tokens",
                 folder, folder);
    if (fs::exists(partial_, error) && !fs::is_directory(partial_, error))
      user_error("{}: is in the way; remove it", path());
    made_ = make_folder(path());
    lock_.emplace(path());
    remove_leftovers();
  }
  ~PartialFolder() {
    if (published_) return;
    remove_quietly(path());
    remove_empty_folders(made_);
  }
  PartialFolder(const PartialFolder&) = delete;
  PartialFolder& operator=(const PartialFolder&) = delete;

  std::string path() const { return partial_.string(); }

  void publish() {
    sync_folder(path());
    std::error_code error;
    fs::rename(partial_, final_, error);
    if (error) user_error("{}: cannot be made: {}; choose another --out", final_.string(), error.message());
    published_ = true;
    sync_folder(final_.has_parent_path() ? final_.parent_path().string() : ".");
  }

 private:
  // An interrupted run's. Anything but our own files in it is not for us to delete.
  void remove_leftovers() {
    const std::vector<std::string> names = list_folder(path());
    for (const std::string& name : names) {
      const bool ours = name.ends_with(".tok") || name.ends_with(".tok.tmp") || name.starts_with("tokenizer.") ||
                        name.starts_with("corpus.json") || name == "stdin";
      if (!ours) user_error("{}: is in the way and holds {}; remove it", path(), name);
    }
    for (const std::string& name : names)
      if (!remove_quietly(path() + "/" + name)) user_error("{}/{}: is in the way and cannot be removed", path(), name);
  }

  fs::path final_;
  fs::path partial_;
  std::vector<std::string> made_;   // folders that were not there before
  std::optional<FolderLock> lock_;  // from two at once
  bool published_ = false;
};

// Standard input can be read once only, so it is kept in a file while we work.
void keep_standard_input(const std::string& path) {
  File file = File::create(path);
  std::array<char, 1 << 16> piece;
  while (true) {
    const ssize_t got = ::read(STDIN_FILENO, piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) user_error("standard input cannot be read: {}", std::strerror(errno));
    if (got == 0) return;
    file.append({piece.data(), static_cast<size_t>(got)});
  }
}

// Which blocks are validation. Block 0 never is, so something is left to train on.
class ValidationSplit {
 public:
  ValidationSplit(double share, uint64_t seed) : random_(seed, "validation blocks"), share_(share) {}

  bool contains(int64_t block) const { return block > 0 && (block == chosen_ || draw(block) < share_); }

  // To be told of every block once; complete() then makes sure that a share above zero is not empty.
  void see(int64_t block) {
    if (block > 0 && (lowest_ < 0 || draw(block) < draw(lowest_))) lowest_ = block;
  }
  void complete() {
    if (share_ > 0) chosen_ = lowest_;
  }
  int64_t chosen() const { return chosen_; }

 private:
  double draw(int64_t block) const { return random_.bits(static_cast<uint64_t>(block)) * 0x1p-32; }

  Random random_;
  double share_;
  int64_t lowest_ = -1;  // the block of the lowest draw: the first to be taken, whatever the share
  int64_t chosen_ = -1;
};

// Text spread evenly over a corpus of unknown length: of all blocks offered, those with the lowest random numbers, as
// many as make `bytes`.
class EvenSample {
 public:
  EvenSample(int64_t bytes, uint64_t seed) : random_(seed, "tokenizer's sample"), limit_(static_cast<size_t>(bytes)) {}

  void offer(const Block& block) {
    const std::pair key(random_.bits(static_cast<uint64_t>(block.index)), block.index);
    if (bytes_ >= limit_ && key > blocks_.rbegin()->first) return;
    bytes_ += block.text.size();
    blocks_.emplace(key, block.text);
    while (bytes_ - blocks_.rbegin()->second.size() >= limit_) {
      bytes_ -= blocks_.rbegin()->second.size();
      blocks_.erase(std::prev(blocks_.end()));
    }
  }

  std::vector<std::string> take_without(int64_t block) {
    std::vector<std::string> texts;
    for (auto& [key, text] : blocks_)
      if (key.second != block) texts.push_back(std::move(text));
    blocks_.clear();
    return texts;
  }

 private:
  Random random_;
  size_t limit_;
  size_t bytes_ = 0;
  std::map<std::pair<uint32_t, int64_t>, std::string> blocks_;
};

int64_t size_of(const std::string& file) {
  std::error_code error;
  if (fs::exists(file, error) && !fs::is_regular_file(file, error) && !fs::is_directory(file, error))
    user_error("{}: can be read once only; pass it as standard input: --input - < {}", file, file);
  const auto bytes = fs::file_size(file, error);
  if (error) user_error("{}: {}; check --input", file.empty() ? "\"\"" : file, error.message());
  return static_cast<int64_t>(bytes);
}

struct Corpus {
  std::string name;  // in messages
  std::vector<std::string> files;
  int64_t disk_bytes = 0;
  int64_t block_bytes = 0;
};

// Blocks are small enough that a share of one in a hundred is a draw, not a gamble, where the corpus allows.
Corpus open_corpus(const TokenizeOptions& options, const std::string& folder) {
  Corpus corpus;
  corpus.name = options.inputs.front() == "-" ? "standard input" : options.inputs.front();
  if (options.inputs.size() > 1) corpus.name += fmt::format(" and {} more", options.inputs.size() - 1);
  for (const std::string& input : options.inputs) {
    corpus.files.push_back(input == "-" ? folder + "/stdin" : input);
    if (input == "-") keep_standard_input(corpus.files.back());
    corpus.disk_bytes += size_of(corpus.files.back());
  }
  corpus.block_bytes = std::clamp<int64_t>(corpus.disk_bytes / 1024, 1 << 10, 1 << 16);
  return corpus;
}

void check_options(const TokenizeOptions& options) {
  if (options.inputs.empty()) user_error("no text to tokenize; pass --input FILE...");
  std::set<fs::path> read;
  for (const std::string& input : options.inputs) {
    std::error_code error;
    if (!read.insert(input == "-" ? fs::path("-") : fs::weakly_canonical(input, error)).second)
      user_error(
          "--input {}{}: is given twice; its text would count twice, and be validated on where it was trained on",
          input, input == "-" ? " (standard input)" : "");
  }
  for (const std::string& input : options.inputs)
    if (input != "-") size_of(input);  // before anything is made
  if (options.folder.empty()) user_error("no folder to write to; pass --out DIR");
  if (!(options.validation_share >= 0 && options.validation_share < 1))
    user_error("validation share {}: must be at least 0 and less than 1", options.validation_share);
  if (options.training_bytes < 1) user_error("training bytes {}: must be at least 1", options.training_bytes);
  PKM_CHECK(options.shard_tokens > 0, "shards of {} tokens", options.shard_tokens);
}

class Tokenization {
 public:
  explicit Tokenization(const TokenizeOptions& options)
      : options_(options),
        folder_(options.folder),
        corpus_(open_corpus(options, folder_.path())),
        split_(options.validation_share, options.seed) {}

  TokenizeSummary run() {
    std::vector<std::string> sample = read();
    const auto begin = std::chrono::steady_clock::now();
    tokenizer_ = learn(sample);
    std::vector<std::string>().swap(sample);
    const auto learnt = std::chrono::steady_clock::now();
    encode();
    const auto end = std::chrono::steady_clock::now();
    summary_.tokenizer_kind = tokenizer_->kind();
    summary_.vocabulary_size = tokenizer_->vocabulary_size();
    summary_.tokenizer_hash = tokenizer_->hash();
    summary_.learning_seconds = std::chrono::duration<double>(learnt - begin).count();
    summary_.encoding_seconds = std::chrono::duration<double>(end - learnt).count();
    tokenizer_->save(folder_.path());
    describe();
    remove_quietly(folder_.path() + "/stdin");
    folder_.publish();
    return summary_;
  }

 private:
  struct Encoded {
    int64_t index;
    bool begins_file;
    TextSize text;
    int64_t raw_bytes;
    std::vector<int32_t> ids;
  };

  // One split being written, and the last block that went into it.
  struct Split {
    TokenWriter writer;
    int64_t last = -1;
  };

  void report(const char* phase, int64_t done) const {
    if (options_.progress) options_.progress({phase, done, corpus_.disk_bytes});
  }

  bool trains_tokenizer() const {
    return options_.tokenizer_folder.empty() && options_.kind == TokenizerKind::kSentencePiece;
  }

  // First pass: settles the split and returns the tokenizer's sample.
  std::vector<std::string> read() {
    BlockReader reader(corpus_.files, corpus_.block_bytes);
    EvenSample sample(options_.training_bytes, options_.seed);
    Block block;
    report("reading", 0);
    while (reader.next(block)) {
      split_.see(block.index);
      if (trains_tokenizer() && !split_.contains(block.index)) sample.offer(block);
      ++blocks_;
      report("reading", reader.disk_bytes());
    }
    if (blocks_ == 0) user_error("{}: the corpus is empty; pass --input with some text", corpus_.name);
    split_.complete();
    return sample.take_without(split_.chosen());
  }

  std::unique_ptr<Tokenizer> learn(const std::vector<std::string>& sample) const {
    if (!options_.tokenizer_folder.empty()) return load_tokenizer(options_.tokenizer_folder);
    if (options_.kind == TokenizerKind::kByte) return make_byte_tokenizer();
    report("learning", 0);
    auto tokenizer = train_tokenizer(sample, options_.vocabulary_size, options_.character_coverage, corpus_.name);
    report("learning", corpus_.disk_bytes);
    return tokenizer;
  }

  // Second pass: blocks are encoded by all threads and written by this one, in their order.
  void encode() {
    const int threads =
        options_.threads > 0 ? options_.threads : std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
    Split train{TokenWriter(folder_.path(), "train", *tokenizer_, options_.shard_tokens)};
    Split valid{TokenWriter(folder_.path(), "valid", *tokenizer_, options_.shard_tokens)};
    BlockReader reader(corpus_.files, corpus_.block_bytes);
    OrderedWorkers<Block, Encoded> workers(threads, [this](Block&& block) { return encode_block(block); });
    const auto drain = [&](size_t allowed) {
      while (workers.in_flight() > allowed) {
        const Encoded encoded = workers.take();
        summary_.raw_bytes += encoded.raw_bytes;
        write(encoded, split_.contains(encoded.index) ? valid : train);
      }
    };
    Block block;
    report("encoding", 0);
    while (reader.next(block)) {
      workers.put(std::move(block));
      drain(static_cast<size_t>(threads) * 8);
      report("encoding", reader.disk_bytes());
    }
    drain(0);
    summary_.train = finish(train);
    summary_.valid = finish(valid);
    if (summary_.train.text.bytes == 0) user_error("the corpus changed while it was read; run `pkmesh tokenize` again");
  }

  Encoded encode_block(const Block& block) const {
    Encoded encoded{block.index, block.begins_file, text_size(block.text), raw_bytes(block.text), {}};
    encoded.ids.reserve(block.text.size() / 2);
    tokenizer_->encode(block.text, encoded.ids);
    return encoded;
  }

  void write(const Encoded& encoded, Split& split) const {
    const int32_t separator = tokenizer_->separator();
    if (encoded.begins_file || encoded.index != split.last + 1) split.writer.append({&separator, 1}, {});
    split.writer.append(encoded.ids, encoded.text);
    split.last = encoded.index;
  }

  static SplitSummary finish(Split& split) {
    split.writer.finish();
    return {split.writer.count(), split.writer.shards(), split.writer.text()};
  }

  void describe() const {
    const auto split = [](const SplitSummary& s) {
      return nlohmann::ordered_json{
          {"tokens", s.tokens}, {"shards", s.shards}, {"bytes", s.text.bytes}, {"words", s.text.words}};
    };
    nlohmann::ordered_json json;
    json["inputs"] = options_.inputs;
    json["tokenizer"] = {{"hash", fmt::format("{:016x}", summary_.tokenizer_hash)},
                         {"vocabulary_size", summary_.vocabulary_size}};
    json["train"] = split(summary_.train);
    json["valid"] = split(summary_.valid);
    json["blocks"] = {{"count", blocks_}, {"bytes", corpus_.block_bytes}};
    json["validation_share"] = options_.validation_share;
    json["seed"] = options_.seed;
    // A name of any bytes is a legal path, but not legal JSON.
    replace_text(folder_.path() + "/corpus.json",
                 json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }

  const TokenizeOptions& options_;
  PartialFolder folder_;
  Corpus corpus_;
  ValidationSplit split_;
  int64_t blocks_ = 0;
  std::unique_ptr<Tokenizer> tokenizer_;
  TokenizeSummary summary_;
};

}  // namespace

TokenizeSummary tokenize(const TokenizeOptions& options) {
  check_options(options);
  return Tokenization(options).run();
}

}  // namespace pkmesh
