// SPDX-License-Identifier: Apache-2.0
// Files as owned objects. What can go wrong here (no such file, no permission, a full disk) is the user's to mend, so
// every failure is a UserError of one line: path, the system's words, what to do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pkmesh {

// A file open for writing. Closed with its owner; what must survive a power cut is sync()ed first.
class File {
 public:
  static File create(const std::string& path);              // empties what was there
  static File open_existing(const std::string& path);       // to write at offsets
  static File open_for_appending(const std::string& path);  // made if absent
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;
  ~File();

  // Gives the file its full size and claims the blocks where the file system can, so that a full disk shows now.
  void reserve(int64_t bytes);
  void truncate(int64_t bytes);
  void write_at(std::span<const std::byte> bytes, int64_t offset);
  void append(std::string_view text);
  void sync();

 private:
  File(std::string path, int flags);
  [[noreturn]] void fail() const;

  std::string path_;
  int descriptor_ = -1;
};

// A file mapped into memory, read-only. Move-only.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

// Keeps a folder for this process while it lives: whoever else wants it gets a UserError. Nobody is kept out where the
// file system knows no locks.
class FolderLock {
 public:
  explicit FolderLock(const std::string& path);
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  ~FolderLock();

 private:
  int descriptor_ = -1;
};

std::string read_text(const std::string& path);
// The file holds the old text or the new one, never half of it: written beside, synced, renamed.
void replace_text(const std::string& path, std::string_view text);
// And its parents; returns those that were not there before, the innermost first. UserError, and none made, if one
// cannot be.
std::vector<std::string> make_folder(const std::string& path);
void remove_empty_folders(
    const std::vector<std::string>& folders);        // what make_folder() returned, unless others use it
void refuse_dangling_link(const std::string& path);  // UserError if that is what it is
// Names of what is in a folder, sorted. None if there is no such folder; UserError if it cannot be read.
std::vector<std::string> list_folder(const std::string& path);
void sync_folder(const std::string& path);  // makes the names in it durable
// Deletes a file or a folder with all that is in it; says whether it is gone. Never throws.
bool remove_quietly(const std::string& path);
// XXH3 (64 bits) of the whole file, read in pieces.
uint64_t file_checksum(const std::string& path);
uint64_t text_checksum(std::string_view text);

}  // namespace pkmesh
