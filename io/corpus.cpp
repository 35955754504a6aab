// SPDX-License-Identifier: Apache-2.0
#include "io/corpus.h"

#include <sys/stat.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "runtime/check.h"

namespace pkmesh {
namespace {

constexpr size_t kReadBytes = size_t{1} << 18;

}  // namespace

// One input: text as it is, or gzip members one behind the other. Not zlib's gzread(): it takes whatever follows a
// member for padding, and would drop all that follows a damaged one.
class BlockReader::Archive {
 public:
  explicit Archive(const std::string& path)
      : path_(path), file_(std::fopen(path.c_str(), "rbe")), buffer_(kReadBytes, '\0') {
    if (file_ == nullptr) fail_to_read();
    struct stat status {};
    if (::fstat(::fileno(file_.get()), &status) == 0 && S_ISDIR(status.st_mode))
      user_error("{}: is a folder; name the files in it", path);
    zipped_ = at_member();
    constexpr int kGzipOnly = 16;
    if (zipped_) PKM_CHECK(inflateInit2(&stream_, kGzipOnly + MAX_WBITS) == Z_OK, "no memory to inflate {}", path);
  }
  ~Archive() {
    if (zipped_) inflateEnd(&stream_);
  }
  Archive(const Archive&) = delete;
  Archive& operator=(const Archive&) = delete;

  // Appends what comes next to `text`; false at the end.
  bool read(std::string& text) {
    const size_t before = text.size();
    text.resize(before + kReadBytes);
    const std::span<char> room = std::span(text).subspan(before);
    const size_t got = zipped_ ? inflate_to(room) : copy_to(room);
    text.resize(before + got);
    if (!std::exchange(begun_, true)) refuse_other_formats(std::string_view(text).substr(before));
    return got > 0;
  }

  int64_t disk_bytes() const { return read_ - std::ssize(rest_); }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  [[noreturn]] void fail_to_read() const { user_error("{}: cannot be read: {}", path_, std::strerror(errno)); }

  // At least `bytes` of the file in rest_, fewer only at its end.
  void fill(size_t bytes) {
    if (rest_.size() >= bytes) return;
    std::ranges::copy(rest_, buffer_.begin());
    const size_t got = std::fread(buffer_.data() + rest_.size(), 1, buffer_.size() - rest_.size(), file_.get());
    if (std::ferror(file_.get()) != 0) fail_to_read();
    rest_ = std::string_view(buffer_.data(), rest_.size() + got);
    read_ += static_cast<int64_t>(got);
  }

  bool at_member() {
    fill(2);
    return rest_.starts_with("\x1F\x8B");
  }

  size_t copy_to(std::span<char> out) {
    fill(1);
    const size_t count = rest_.copy(out.data(), out.size());
    rest_.remove_prefix(count);
    return count;
  }

  size_t inflate_to(std::span<char> out) {
    stream_.next_out = reinterpret_cast<Bytef*>(out.data());
    stream_.avail_out = static_cast<uInt>(out.size());
    while (stream_.avail_out > 0 && !ended_) {
      fill(1);
      if (rest_.empty())
        user_error("{}: the archive is truncated: it ends unexpectedly, at byte {}; fetch it again", path_, read_);
      stream_.next_in = reinterpret_cast<Bytef*>(buffer_.data() + (rest_.data() - buffer_.data()));
      stream_.avail_in = static_cast<uInt>(rest_.size());
      const int status = inflate(&stream_, Z_NO_FLUSH);
      rest_.remove_prefix(rest_.size() - stream_.avail_in);
      PKM_CHECK(status != Z_MEM_ERROR, "no memory to inflate {}", path_);
      if (status == Z_STREAM_END) {
        next_member();
      } else if (status != Z_OK) {
        user_error("{}: the archive is damaged at byte {} ({}); fetch it again", path_, disk_bytes(),
                   stream_.msg != nullptr ? stream_.msg : "no more can be inflated");
      }
    }
    return out.size() - stream_.avail_out;
  }

  // Behind the last member there may be zeros, to fill a tape's block, as gzip(1) has it.
  void next_member() {
    if (at_member()) {
      inflateReset(&stream_);
      return;
    }
    const int64_t end = disk_bytes();
    for (; !rest_.empty(); fill(1)) {
      if (rest_.find_first_not_of('\0') != std::string_view::npos)
        user_error("{}: behind its first {} bytes is no archive, but more data; fetch it again", path_, end);
      rest_ = {};
    }
    ended_ = true;
  }

  // What would be learnt as noise if it were taken for text.
  void refuse_other_formats(std::string_view start) const {
    for (const auto& [mark, tool] : {std::pair<std::string_view, const char*>{"\xFD"
                                                                              "7zXZ",
                                                                              "xz -dc"},
                                     {"\x28\xB5\x2F\xFD", "zstd -dc"},
                                     {"BZh", "bzip2 -dc"},
                                     {"PK\x03\x04", "unzip -p"}})
      if (start.starts_with(mark))
        user_error("{}: is an archive that is not read here; pass its text: {} FILE | pkmesh tokenize --input - ...",
                   path_, tool);
    using namespace std::string_view_literals;
    if (start.starts_with("\xFF\xFE\0\0"sv) || start.starts_with("\0\0\xFE\xFF"sv))  // before UTF-16, whose mark it has
      user_error("{}: is in UTF-32; convert it first: iconv -f utf-32 -t utf-8 {}", path_, path_);
    if (start.starts_with("\xFF\xFE") || start.starts_with("\xFE\xFF"))
      user_error("{}: is in UTF-16; convert it first: iconv -f utf-16 -t utf-8 {}", path_, path_);
    if (!zipped_ && (path_.ends_with(".gz") || path_.ends_with(".dz")))
      user_error("{}: is named as an archive and is none; rename it if it is text, or fetch it again", path_);
  }

  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
  std::string buffer_;
  std::string_view rest_;  // of buffer_: what was read and not yet used
  int64_t read_ = 0;       // bytes of the file
  bool zipped_ = false;
  bool begun_ = false;
  bool ended_ = false;  // behind the last member
  z_stream stream_{};
};

BlockReader::BlockReader(std::vector<std::string> files, int64_t block_bytes)
    : files_(std::move(files)), block_bytes_(static_cast<size_t>(block_bytes)) {
  PKM_CHECK(block_bytes > 0, "blocks of {} bytes", block_bytes);
}

BlockReader::~BlockReader() = default;

int64_t BlockReader::disk_bytes() const {
  return closed_bytes_ + (archive_ ? archive_->disk_bytes() : 0);
}

// Until more than two blocks are pending or the file is at its end. False at the end of the corpus.
bool BlockReader::refill() {
  while (pending_.size() - used_ <= 2 * block_bytes_) {
    if (archive_ == nullptr) {
      if (used_ < pending_.size()) return true;  // the rest of a file
      if (next_file_ == files_.size()) return false;
      archive_ = std::make_unique<Archive>(files_[next_file_++]);
      begins_file_ = true;
    }
    pending_.erase(0, std::exchange(used_, 0));
    if (!archive_->read(pending_)) {
      closed_bytes_ += archive_->disk_bytes();
      archive_.reset();
    }
  }
  return true;
}

bool BlockReader::next(Block& block) {
  if (!refill()) return false;
  const std::string_view rest = std::string_view(pending_).substr(used_);
  size_t length = std::min(rest.size(), 2 * block_bytes_);
  if (const size_t newline = rest.substr(0, length).find('\n', block_bytes_ - 1); newline != std::string_view::npos) {
    length = newline + 1;
  } else if (length < rest.size()) {  // a line without end: cut it, though not inside a character
    const auto continues = [&](size_t at) { return (static_cast<uint8_t>(rest[at]) & 0xC0U) == 0x80U; };
    for (int back = 0; back < 3 && length > 1 && continues(length); ++back) --length;
  }
  block.index = next_index_++;
  block.begins_file = std::exchange(begins_file_, false);
  block.text.assign(rest.substr(0, length));
  used_ += length;
  return true;
}

}  // namespace pkmesh
