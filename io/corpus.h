// SPDX-License-Identifier: Apache-2.0
// A corpus as a stream of blocks: text files, gzipped or not, read once from the first byte to the last in bounded
// memory. Where blocks end depends on the text alone, so a second pass meets the same blocks under the same numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace pkmesh {

struct Block {
  int64_t index = 0;         // over the whole corpus
  bool begins_file = false;  // the first block of an input
  std::string text;          // whole lines, unless a line is longer than twice the block size
};

class BlockReader {
 public:
  // `files` hold text; what begins as gzip does (.gz, .dz) is inflated, all its members. A block ends with the first
  // line that reaches `block_bytes`. UserError, when its turn comes, for a file that cannot be read, is a damaged
  // archive, or no text: an archive of another kind, UTF-16, UTF-32.
  BlockReader(std::vector<std::string> files, int64_t block_bytes);
  ~BlockReader();
  BlockReader(const BlockReader&) = delete;
  BlockReader& operator=(const BlockReader&) = delete;

  // The next block, or false at the end of the corpus. Empty files give none.
  bool next(Block& block);
  // Bytes of the files read so far, as they lie on the disk: for a progress bar.
  int64_t disk_bytes() const;

 private:
  class Archive;
  bool refill();

  std::vector<std::string> files_;
  size_t block_bytes_;
  size_t next_file_ = 0;
  int64_t next_index_ = 0;
  int64_t closed_bytes_ = 0;  // on disk, of the files behind us
  bool begins_file_ = false;
  std::unique_ptr<Archive> archive_;
  std::string pending_;  // inflated, not yet in a block
  size_t used_ = 0;      // of pending_
};

}  // namespace pkmesh
