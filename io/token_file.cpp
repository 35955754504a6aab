// SPDX-License-Identifier: Apache-2.0
// What a reader trusts, it has checked: the header's own checksum first, then the file's size against the header, then
// each block of ids before the first of them is handed out.
#include "io/token_file.h"

#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <filesystem>
#include <utility>

#include "io/file.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian");

constexpr char kMagic[8] = {'P', 'K', 'M', 'T', 'O', 'K', 'E', 'N'};
constexpr uint32_t kVersion = 2;
constexpr size_t kBlockBytes = size_t{1} << 16;  // a multiple of both widths
constexpr size_t kBufferBytes = size_t{1} << 20;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t width;
  uint64_t tokenizer_hash;
  uint64_t vocabulary_size;
  uint64_t count;
  uint64_t bytes;
  uint64_t words;
  uint64_t checksum;
  uint64_t index;
  uint64_t last;
  uint64_t zeros[5];
  uint64_t header_checksum;
};
static_assert(sizeof(Header) == 128 && std::has_unique_object_representations_v<Header>);

uint64_t checksum_of(const Header& header) {
  return XXH3_64bits(&header, offsetof(Header, header_checksum));
}

// Where the blocks' checksums begin in a file, and where they end.
struct ChecksumPlace {
  size_t begin;
  size_t end;
};
ChecksumPlace checksum_place(const Header& header) {
  const size_t bytes = header.count * header.width;
  const size_t begin = sizeof(Header) + (bytes + 7) / 8 * 8;
  return {begin, begin + (bytes + kBlockBytes - 1) / kBlockBytes * sizeof(uint64_t)};
}

uint32_t width_of(int64_t vocabulary_size) {
  return vocabulary_size <= 65536 ? 2 : 4;
}

std::string shard_path(const std::string& folder, const std::string& split, int64_t index) {
  return fmt::format("{}/{}-{:05}.tok", folder, split, index);
}

int64_t count_shards(const std::string& folder, const std::string& split) {
  return std::ranges::count_if(list_folder(folder), [&](const std::string& name) {
    return name.starts_with(split + "-") && name.ends_with(".tok");
  });
}

}  // namespace

TextSize text_size(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  TextSize size{static_cast<int64_t>(text.size()), 0};
  bool inside = false;
  for (const char c : text) {
    const bool space = is_space(c);
    size.words += !space && !inside;
    inside = !space;
  }
  return size;
}

// A shard being written: room for the header, then ids, then the header.
class TokenWriter::Shard {
 public:
  Shard(std::string path, const Header& header)
      : path_(std::move(path)), temporary_(path_ + ".tmp"), file_(File::create(temporary_)), header_(header) {}
  ~Shard() {
    if (!complete_) remove_quietly(temporary_);
  }
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  int64_t count() const { return static_cast<int64_t>(header_.count); }

  void append(std::span<const int32_t> ids) {
    if (header_.width == 2)
      append_as<uint16_t>(ids);
    else
      append_as<uint32_t>(ids);
    if (buffer_.size() >= kBufferBytes) flush(buffer_.size() / kBlockBytes * kBlockBytes);
  }

  void add_text(TextSize text) {
    header_.bytes += static_cast<uint64_t>(text.bytes);
    header_.words += static_cast<uint64_t>(text.words);
  }

  void finish(bool last) {
    flush(buffer_.size());
    file_.write_at(std::as_bytes(std::span(checksums_)), static_cast<int64_t>(checksum_place(header_).begin));
    header_.last = last ? 1 : 0;
    header_.checksum = XXH3_64bits(checksums_.data(), checksums_.size() * sizeof(uint64_t));
    header_.header_checksum = checksum_of(header_);
    file_.write_at(std::as_bytes(std::span(&header_, 1)), 0);
    file_.sync();
    std::error_code error;
    std::filesystem::rename(temporary_, path_, error);
    if (error) user_error("{}: cannot be made: {}; choose another --out", path_, error.message());
    complete_ = true;
  }

 private:
  template <class Id>
  void append_as(std::span<const int32_t> ids) {
    const size_t begin = buffer_.size();
    buffer_.resize(begin + ids.size() * sizeof(Id));
    auto* out = reinterpret_cast<Id*>(buffer_.data() + begin);
    for (size_t i = 0; i < ids.size(); ++i) {
      PKM_CHECK(ids[i] >= 0 && static_cast<uint64_t>(ids[i]) < header_.vocabulary_size,
                "token {} of a vocabulary of {}", ids[i], header_.vocabulary_size);
      out[i] = static_cast<Id>(ids[i]);
    }
    header_.count += ids.size();
  }

  // Writes the buffer's first `bytes`: whole blocks, except at the end.
  void flush(size_t bytes) {
    const auto done = std::span<const std::byte>(buffer_).first(bytes);
    for (size_t begin = 0; begin < bytes; begin += kBlockBytes)
      checksums_.push_back(XXH3_64bits(&done[begin], std::min(kBlockBytes, bytes - begin)));
    file_.write_at(done, written_);
    written_ += static_cast<int64_t>(bytes);
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(bytes));
  }

  std::string path_;
  std::string temporary_;
  File file_;
  Header header_;
  std::vector<uint64_t> checksums_;  // of the blocks written
  std::vector<std::byte> buffer_;
  int64_t written_ = sizeof(Header);
  bool complete_ = false;
};

TokenWriter::TokenWriter(std::string folder, std::string split, const Tokenizer& tokenizer, int64_t shard_tokens)
    : folder_(std::move(folder)),
      split_(std::move(split)),
      tokenizer_hash_(tokenizer.hash()),
      vocabulary_size_(tokenizer.vocabulary_size()),
      shard_tokens_(shard_tokens) {
  PKM_CHECK(shard_tokens_ > 0, "shards of {} tokens", shard_tokens_);
}

TokenWriter::~TokenWriter() = default;

void TokenWriter::open_shard() {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.width = width_of(vocabulary_size_);
  header.tokenizer_hash = tokenizer_hash_;
  header.vocabulary_size = static_cast<uint64_t>(vocabulary_size_);
  header.index = static_cast<uint64_t>(shards_);
  shard_ = std::make_unique<Shard>(shard_path(folder_, split_, shards_), header);
}

void TokenWriter::close_shard(bool last) {
  shard_->finish(last);
  shard_.reset();
  ++shards_;
}

// A full shard stays open until more comes, for only then is it known not to be the last.
void TokenWriter::append(std::span<const int32_t> ids, TextSize text) {
  text_.bytes += text.bytes;
  text_.words += text.words;
  count_ += static_cast<int64_t>(ids.size());
  while (!ids.empty()) {
    if (shard_ != nullptr && shard_->count() == shard_tokens_) close_shard(false);
    if (shard_ == nullptr) open_shard();
    shard_->add_text(std::exchange(text, {}));
    const auto room = static_cast<size_t>(shard_tokens_ - shard_->count());
    const auto now = ids.first(std::min(room, ids.size()));
    shard_->append(now);
    ids = ids.subspan(now.size());
  }
}

void TokenWriter::finish() {
  if (shard_ == nullptr) open_shard();
  close_shard(true);
}

// A shard being read: its map and its header, checked.
class Tokens::Shard {
 public:
  explicit Shard(const std::string& path) : path_(path), file_(path) {
    check_header();
    const auto [begin, end] = checksum_place(header_);
    checked_ = std::vector<std::atomic<bool>>((end - begin) / sizeof(uint64_t));
  }

  const Header& header() const { return header_; }
  const std::string& path() const { return path_; }

  void read(int64_t begin, std::span<int32_t> out) const {
    if (out.empty()) return;
    const size_t first = static_cast<size_t>(begin) * header_.width;
    check_blocks(first / kBlockBytes, (first + out.size() * header_.width - 1) / kBlockBytes + 1);
    if (header_.width == 2)
      std::ranges::copy(ids<uint16_t>().subspan(static_cast<size_t>(begin), out.size()), out.begin());
    else
      std::ranges::copy(ids<uint32_t>().subspan(static_cast<size_t>(begin), out.size()), out.begin());
  }

  // Part `part` of `parts`.
  void verify(size_t part, size_t parts) const {
    check_blocks(checked_.size() * part / parts, checked_.size() * (part + 1) / parts);
  }

 private:
  [[noreturn]] void damaged() const {
    user_error("{}: its tokens are not those that were written (checksum); run `pkmesh tokenize` again", path_);
  }

  template <class Id>
  std::span<const Id> ids() const {
    return {reinterpret_cast<const Id*>(file_.bytes().data() + sizeof(Header)), header_.count};
  }

  // Blocks [begin, end), each once; twice if two threads meet, which is no harm.
  void check_blocks(size_t begin, size_t end) const {
    for (size_t block = begin; block < end; ++block) {
      if (checked_[block].load(std::memory_order_relaxed)) continue;
      check_checksums();
      const size_t bytes = header_.count * header_.width;
      const size_t offset = block * kBlockBytes;
      const auto place = file_.bytes().subspan(sizeof(Header) + offset, std::min(kBlockBytes, bytes - offset));
      uint64_t expected = 0;
      std::memcpy(&expected, &file_.bytes()[checksum_place(header_).begin + block * sizeof(uint64_t)],
                  sizeof(expected));
      if (XXH3_64bits(place.data(), place.size()) != expected) damaged();
      if (header_.width == 2)
        check_range<uint16_t>(place);
      else
        check_range<uint32_t>(place);
      checked_[block].store(true, std::memory_order_relaxed);
    }
  }

  void check_checksums() const {
    if (checksums_checked_.load(std::memory_order_relaxed)) return;
    const auto [begin, end] = checksum_place(header_);
    if (XXH3_64bits(&file_.bytes()[begin], end - begin) != header_.checksum) damaged();
    checksums_checked_.store(true, std::memory_order_relaxed);
  }

  // Our own writer keeps to the vocabulary; whoever looks tokens up in a table relies on it.
  template <class Id>
  void check_range(std::span<const std::byte> block) const {
    const std::span<const Id> ids(reinterpret_cast<const Id*>(block.data()), block.size() / sizeof(Id));
    const Id highest = *std::ranges::max_element(ids);
    if (highest >= header_.vocabulary_size)
      user_error("{}: holds token {} of a vocabulary of {}; run `pkmesh tokenize` again", path_, highest,
                 header_.vocabulary_size);
  }

  void check_header() {
    const size_t size = file_.bytes().size();
    if (size < sizeof(Header)) user_error("{}: {} bytes are no token file; run `pkmesh tokenize` again", path_, size);
    std::memcpy(&header_, file_.bytes().data(), sizeof(Header));
    if (std::memcmp(header_.magic, kMagic, sizeof(kMagic)) != 0)
      user_error("{}: not a token file of pkmesh; run `pkmesh tokenize` again", path_);
    if (header_.version != kVersion)
      user_error("{}: token file of version {}, this program reads {}; run `pkmesh tokenize` again", path_,
                 header_.version, kVersion);
    if (header_.header_checksum != checksum_of(header_) || header_.vocabulary_size > INT32_MAX ||
        header_.width != width_of(static_cast<int64_t>(header_.vocabulary_size)))
      user_error("{}: its header is damaged; run `pkmesh tokenize` again", path_);
    const bool fits = header_.count <= size;  // or the size that follows from it may not be a number
    if (!fits || checksum_place(header_).end != size)
      user_error("{}: {}: {} tokens make a file of another size than {} bytes; run `pkmesh tokenize` again", path_,
                 fits && checksum_place(header_).end < size ? "longer than it was written" : "truncated", header_.count,
                 size);
  }

  std::string path_;
  MappedFile file_;
  Header header_{};
  mutable std::vector<std::atomic<bool>> checked_;  // of each block, whether it was found good
  mutable std::atomic<bool> checksums_checked_ = false;
};

bool Tokens::exist(const std::string& folder, const std::string& split) {
  return count_shards(folder, split) > 0;
}

Tokens Tokens::open(const std::string& folder, const std::string& split, uint64_t tokenizer_hash) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error))
    user_error("{}: {}; pass the folder that `pkmesh tokenize` wrote", folder,
               error ? error.message() : "not a folder");
  const int64_t shards = count_shards(folder, split);
  if (shards == 0)
    user_error("{}: no {} tokens in it; pass the folder that `pkmesh tokenize` wrote", folder,
               split == "valid" ? "validation" : "training");

  Tokens tokens;
  tokens.tokenizer_hash_ = tokenizer_hash;
  for (int64_t index = 0; index < shards; ++index) {
    auto shard = std::make_shared<Shard>(shard_path(folder, split, index));
    const Header& header = shard->header();
    if (tokens.tokenizer_hash_ == 0) tokens.tokenizer_hash_ = header.tokenizer_hash;
    if (tokens.tokenizer_hash_ != header.tokenizer_hash)
      user_error("{}: written with tokenizer {:016x}, not {:016x}; tokenize the corpus anew or use its own tokenizer",
                 shard->path(), header.tokenizer_hash, tokens.tokenizer_hash_);
    if (header.index != static_cast<uint64_t>(index))
      user_error("{}: it was written as shard {}; run `pkmesh tokenize` again", shard->path(), header.index);
    if ((header.last != 0) != (index + 1 == shards))
      user_error("{}: {}; run `pkmesh tokenize` again", shard->path(),
                 header.last != 0 ? "the last shard, yet more follow" : "shards after it are missing");
    tokens.fingerprint_ = XXH3_64bits_withSeed(&header, sizeof(header), tokens.fingerprint_);
    tokens.bytes_ += static_cast<int64_t>(header.count * header.width);
    tokens.vocabulary_size_ = static_cast<int32_t>(header.vocabulary_size);
    tokens.text_.bytes += static_cast<int64_t>(header.bytes);
    tokens.text_.words += static_cast<int64_t>(header.words);
    tokens.starts_.push_back(tokens.count() + static_cast<int64_t>(header.count));
    tokens.shards_.push_back(std::move(shard));
  }
  return tokens;
}

void Tokens::read(int64_t begin, std::span<int32_t> out) const {
  PKM_CHECK(begin >= 0 && begin + static_cast<int64_t>(out.size()) <= count(), "tokens [{}, {}) of {}", begin,
            begin + static_cast<int64_t>(out.size()), count());
  auto shard = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), begin) - starts_.begin() - 1);
  while (!out.empty()) {
    const auto left = static_cast<size_t>(starts_[shard + 1] - begin);
    const auto now = out.first(std::min(left, out.size()));
    shards_[shard]->read(begin - starts_[shard], now);
    out = out.subspan(now.size());
    begin += static_cast<int64_t>(now.size());
    ++shard;
  }
}

void Tokens::verify(int part, int parts) const {
  for (const auto& shard : shards_) shard->verify(static_cast<size_t>(part), static_cast<size_t>(parts));
}

}  // namespace pkmesh
