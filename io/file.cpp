// SPDX-License-Identifier: Apache-2.0
#include "io/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "runtime/check.h"

namespace pkmesh {
namespace {

std::string reason(int error) {
  return std::generic_category().message(error);  // as strerror, without its shared buffer
}

// How to mend what hinders reading and writing alike.
const char* remedy(int error, const char* otherwise) {
  return error == EMFILE || error == ENFILE ? "raise the limit (ulimit -n)" : otherwise;
}

[[noreturn]] void fail_to_read(const std::string& path, int error) {
  user_error("{}: cannot be read: {}; {}", path, reason(error), remedy(error, "check the path and its permissions"));
}

[[noreturn]] void fail_to_write(const std::string& path, int error) {
  const bool full = error == ENOSPC || error == EDQUOT;
  user_error("{}: cannot be written: {}; {}", path, reason(error),
             full             ? "free some space or choose another folder"
             : error == EFBIG ? "raise the limit (ulimit -f) or choose another folder"
                              : remedy(error, "choose another folder or mend its permissions"));
}

// Calls `call` until no signal interrupts it.
template <class Call>
auto through_signals(const Call& call) {
  while (true) {
    const auto result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

struct Descriptor {
  int value;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

int open_to_read(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail_to_read(path, errno);
  return descriptor;
}

// Calls take(piece) for the consecutive pieces of a file.
template <class Take>
void read_pieces(const std::string& path, const Take& take) {
  constexpr size_t kPiece = size_t{1} << 20;
  const Descriptor file{open_to_read(path)};
  std::vector<char> piece(kPiece);
  while (true) {
    const ssize_t got = through_signals([&] { return ::read(file.value, piece.data(), piece.size()); });
    if (got < 0) fail_to_read(path, errno);
    if (got == 0) return;
    take(std::string_view(piece.data(), static_cast<size_t>(got)));
  }
}

}  // namespace

File::File(std::string path, int flags)
    : path_(std::move(path)), descriptor_(::open(path_.c_str(), flags | O_CLOEXEC, 0644)) {
  if (descriptor_ < 0) fail();
}

File File::create(const std::string& path) {
  return File(path, O_WRONLY | O_CREAT | O_TRUNC);
}
File File::open_existing(const std::string& path) {
  return File(path, O_WRONLY);
}
File File::open_for_appending(const std::string& path) {
  return File(path, O_WRONLY | O_CREAT | O_APPEND);
}

File::File(File&& other) noexcept : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void File::fail() const {
  fail_to_write(path_, errno);
}

void File::reserve(int64_t bytes) {
  if (bytes > 0 && through_signals([&] { return ::fallocate(descriptor_, 0, 0, bytes); }) == 0) return;
  if (bytes > 0 && errno != EOPNOTSUPP && errno != ENOSYS) fail();
  truncate(bytes);
}

void File::truncate(int64_t bytes) {
  if (through_signals([&] { return ::ftruncate(descriptor_, bytes); }) != 0) fail();
}

void File::write_at(std::span<const std::byte> bytes, int64_t offset) {
  while (!bytes.empty()) {
    const ssize_t done = through_signals([&] { return ::pwrite(descriptor_, bytes.data(), bytes.size(), offset); });
    if (done < 0) fail();
    bytes = bytes.subspan(static_cast<size_t>(done));
    offset += done;
  }
}

void File::append(std::string_view text) {
  while (!text.empty()) {
    const ssize_t done = through_signals([&] { return ::write(descriptor_, text.data(), text.size()); });
    if (done < 0) fail();
    text.remove_prefix(static_cast<size_t>(done));
  }
}

void File::sync() {
  if (through_signals([&] { return ::fsync(descriptor_); }) != 0 && errno != EINVAL)
    fail();  // EINVAL: a pipe or a device, nothing to sync
}

MappedFile::MappedFile(const std::string& path) {
  const Descriptor file{open_to_read(path)};
  struct stat status {};
  if (::fstat(file.value, &status) != 0) fail_to_read(path, errno);
  if (!S_ISREG(status.st_mode)) user_error("{}: not a file; check the path", path);
  if (status.st_size == 0) return;  // nothing can be mapped, and nothing need be
  void* memory = ::mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_SHARED, file.value, 0);
  if (memory == MAP_FAILED) fail_to_read(path, errno);
  bytes_ = {static_cast<const std::byte*>(memory), static_cast<size_t>(status.st_size)};
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

FolderLock::FolderLock(const std::string& path)
    : descriptor_(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  if (descriptor_ < 0) fail_to_read(path, errno);
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(descriptor_);
    user_error("{}: another pkmesh is writing to it; wait until it has ended, or give another folder", path);
  }
}

FolderLock::~FolderLock() {
  ::close(descriptor_);
}

std::string read_text(const std::string& path) {
  std::string text;
  read_pieces(path, [&](std::string_view piece) { text += piece; });
  return text;
}

void replace_text(const std::string& path, std::string_view text) {
  const std::string beside = path + ".tmp";
  try {
    {
      File file = File::create(beside);
      file.append(text);
      file.sync();
    }
    if (::rename(beside.c_str(), path.c_str()) != 0) fail_to_write(path, errno);
  } catch (const UserError&) {
    remove_quietly(beside);
    throw;
  }
}

std::vector<std::string> make_folder(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::vector<std::string> missing;  // the innermost first
  fs::path at = path;
  for (; fs::symlink_status(at, error).type() == fs::file_type::not_found && !at.empty(); at = at.parent_path())
    missing.push_back(at.string());
  refuse_dangling_link(at.string());
  std::vector<std::string> made;
  for (auto folder = missing.rbegin(); folder != missing.rend(); ++folder) {
    if (fs::create_directory(*folder, error)) made.insert(made.begin(), *folder);
    if (!error) continue;
    remove_empty_folders(made);
    fail_to_write(path, error.value());
  }
  if (!fs::is_directory(path, error)) fail_to_write(path, ENOTDIR);
  return made;
}

void remove_empty_folders(const std::vector<std::string>& folders) {
  std::error_code error;
  for (const std::string& folder : folders) std::filesystem::remove(folder, error);
}

void refuse_dangling_link(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_symlink(path, error) && !std::filesystem::exists(path, error))
    user_error("{}: is a link to what is not there; remove the link, or make what it points to", path);
}

std::vector<std::string> list_folder(const std::string& path) {
  namespace fs = std::filesystem;
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(path, error); !error && entry != fs::directory_iterator(); entry.increment(error))
    names.push_back(entry->path().filename().string());
  if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory)
    fail_to_read(path, error.value());
  std::ranges::sort(names);
  return names;
}

void sync_folder(const std::string& path) {
  const Descriptor folder{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (folder.value < 0) fail_to_write(path, errno);
  if (::fsync(folder.value) != 0 && errno != EINVAL) fail_to_write(path, errno);
}

bool remove_quietly(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  return !error;
}

uint64_t file_checksum(const std::string& path) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
  PKM_CHECK(state != nullptr && XXH3_64bits_reset(state.get()) == XXH_OK, "no memory for a checksum");
  read_pieces(path, [&](std::string_view piece) { XXH3_64bits_update(state.get(), piece.data(), piece.size()); });
  return XXH3_64bits_digest(state.get());
}

uint64_t text_checksum(std::string_view text) {
  return XXH3_64bits(text.data(), text.size());
}

}  // namespace pkmesh
