// SPDX-License-Identifier: Apache-2.0
#include "launcher/bench_tokens.h"

#include <stdlib.h>

#include <algorithm>
#include <filesystem>

#include "io/embedded.h"
#include "io/file.h"
#include "io/tokenize.h"
#include "runtime/check.h"
#include "runtime/random.h"

namespace pkmesh {
namespace {

// Stands for the tokenizer that the ids would have come from.
class NoTokenizer final : public Tokenizer {
 public:
  explicit NoTokenizer(int64_t size) : size_(static_cast<int32_t>(size)) {}
  TokenizerKind kind() const override { return TokenizerKind::kByte; }
  int32_t vocabulary_size() const override { return size_; }
  int32_t separator() const override { return 0; }
  uint64_t hash() const override { return 1; }
  void encode(std::string_view, std::vector<int32_t>&) const override {}
  std::string decode(std::span<const int32_t>) const override { return {}; }
  std::map<std::string, std::string> files() const override { return {}; }

 private:
  int32_t size_;
};

class ScratchFolder {
 public:
  ScratchFolder() {
    std::error_code error;
    const std::filesystem::path all = std::filesystem::temp_directory_path(error);
    if (error) user_error("there is no folder for temporary files; set TMPDIR to one that is there");
    path_ = (all / "pkmesh-bench-XXXXXX").string();
    if (::mkdtemp(path_.data()) == nullptr) user_error("{}: no temporary folder can be made there; set TMPDIR", path_);
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

Tokens random_tokens(int64_t count, int64_t vocabulary) {
  const ScratchFolder folder;
  std::vector<uint32_t> bits(static_cast<size_t>(count));
  Random(1, "bench tokens").fill_bits(0, count, bits.data());
  std::vector<int32_t> ids(bits.size());
  std::ranges::transform(bits, ids.begin(), [&](uint32_t b) { return static_cast<int32_t>(b % vocabulary); });
  TokenWriter writer(folder.path(), "train", NoTokenizer(vocabulary), count);
  writer.append(ids, {.bytes = count, .words = 1});
  writer.finish();
  return Tokens::open(folder.path(), "train");
}

TrainingTokens training_tokens(const config::Config& config) {
  const auto open = [](const std::string& folder) {
    const auto tokenizer = load_tokenizer(folder);
    return TrainingTokens{Tokens::open(folder, "train", tokenizer->hash()), tokenizer->vocabulary_size()};
  };
  if (config.data().source() == config::Data::FOLDER) {
    if (config.data().train().empty())
      user_error("data.train is empty: name a folder that `pkmesh tokenize` wrote, or --set data.source=BUILT_IN");
    return open(config.data().train());
  }
  const ScratchFolder folder;
  TokenizeOptions options;
  options.inputs = {folder.path() + "/built-in.txt"};
  options.folder = folder.path() + "/tokens";
  options.kind = TokenizerKind::kByte;
  replace_text(options.inputs[0], built_in_text());
  tokenize(options);
  return open(options.folder);
}

}  // namespace pkmesh
