// SPDX-License-Identifier: Apache-2.0
#include "io/corpus.h"

#include <sys/stat.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "runtime/check.h"

namespace pkmesh {
namespace {

constexpr size_t kReadBytes = size_t{1} << 18;

}  // namespace

// One input. zlib passes what is not gzip through unchanged.
class BlockReader::Archive {
 public:
  explicit Archive(const std::string& path) : path_(path) {
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode))
      user_error("{}: is a folder; name the files in it", path);
    size_ = status.st_size;
    errno = 0;
    file_.reset(gzopen(path.c_str(), "rbe"));
    if (file_ == nullptr) user_error("{}: cannot be read: {}", path, std::strerror(errno));
    gzbuffer(file_.get(), kReadBytes);
    std::array<char, 8> start{};
    const int got = gzread(file_.get(), start.data(), start.size());
    if (got > 0) refuse_other_formats({start.data(), static_cast<size_t>(got)});
    if (got > 0 && gzdirect(file_.get()) != 0 && (path.ends_with(".gz") || path.ends_with(".dz")))
      user_error("{}: is named as an archive and is none; rename it if it is text, or fetch it again", path);
    gzrewind(file_.get());
  }

  // Appends what comes next to `text`; false at the end.
  bool read(std::string& text) {
    const size_t before = text.size();
    text.resize(before + kReadBytes);
    const int got = gzread(file_.get(), text.data() + before, kReadBytes);
    text.resize(before + static_cast<size_t>(std::max(got, 0)));
    int error = Z_OK;
    const char* message = gzerror(file_.get(), &error);
    if (got < 0 || error != Z_OK) {
      if (error == Z_ERRNO) user_error("{}: cannot be read: {}", path_, std::strerror(errno));
      user_error("{}: the archive is damaged or truncated ({}); fetch it again", path_,
                 error == Z_BUF_ERROR ? "unexpected end" : message);
    }
    // zlib takes what follows the last archive of a file for padding; a damaged archive among several looks like that.
    if (got == 0 && disk_bytes() < size_)
      user_error("{}: behind its first {} bytes is no archive, but more data; fetch it again", path_, disk_bytes());
    return got > 0;
  }

  int64_t disk_bytes() const { return std::max<int64_t>(gzoffset(file_.get()), 0); }

 private:
  struct Close {
    void operator()(gzFile file) const { gzclose_r(file); }
  };
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
    if (start.starts_with("\xFF\xFE") || start.starts_with("\xFE\xFF"))
      user_error("{}: is in UTF-16; convert it first: iconv -f utf-16 -t utf-8 {}", path_, path_);
  }

  std::string path_;
  int64_t size_ = 0;  // on disk
  std::unique_ptr<gzFile_s, Close> file_;
};

BlockReader::BlockReader(std::vector<std::string> files, int64_t block_bytes)
    : files_(std::move(files)), block_bytes_(static_cast<size_t>(block_bytes)) {
  PKM_CHECK(block_bytes > 0, "blocks of {} bytes", block_bytes);
}

BlockReader::~BlockReader() = default;

int64_t BlockReader::disk_bytes() const {
  return closed_bytes_ + (archive_ ? archive_->disk_bytes() : 0);
}

// Until two blocks are pending or the file is at its end. False at the end of the corpus.
bool BlockReader::refill() {
  while (pending_.size() - used_ < 2 * block_bytes_) {
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
