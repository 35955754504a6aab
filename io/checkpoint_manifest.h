// SPDX-License-Identifier: Apache-2.0
// What saving and loading share: file names, the manifest's text, this rank's rows in global order.
#pragma once

#include "io/checkpoint.h"
#include "runtime/buffer.h"

namespace pkmesh {

inline constexpr const char* kManifestFile = "manifest.textproto";
inline constexpr const char* kConfigFile = "config.textproto";
inline constexpr const char* kDenseFile = "dense.safetensors";

std::string manifest_text(const CheckpointManifest& manifest);

// This rank's rows of a table, ascending in the global row.
class OwnedRows {
 public:
  explicit OwnedRows(const ShardedTable& table) : OwnedRows(table, 0, table.local_rows) {}
  OwnedRows(const ShardedTable& table, int64_t begin, int64_t end);  // of local rows [begin, end) alone

  // Calls run(global, local, count) for the longest stretches of rows in [begin, end) that follow one another both
  // globally and here.
  template <class Run>
  void for_each_run(int64_t begin, int64_t end, const Run& run) const {
    const auto [first, last] = span_of(begin, end);
    for (size_t i = first; i < last;) {
      size_t j = i + 1;
      while (j < last && rows_[j].global == rows_[j - 1].global + 1 && rows_[j].local == rows_[j - 1].local + 1) ++j;
      run(rows_[i].global, rows_[i].local, static_cast<int64_t>(j - i));
      i = j;
    }
  }
  bool any_in(int64_t begin, int64_t end) const;
  int64_t count() const { return static_cast<int64_t>(rows_.size()); }
  // Sum over the rows of a 32-bit hash of the row: equal sums over all ranks mean that no row is missing or doubled.
  int64_t fingerprint() const;
  static int64_t fingerprint(int64_t begin, int64_t end);

 private:
  struct Row {
    int64_t global;
    int64_t local;
  };
  std::pair<size_t, size_t> span_of(int64_t begin, int64_t end) const;

  std::vector<Row> rows_;
};

// Pinned host memory through which tensors of a GPU pass. For tensors in host memory it does nothing.
class Staging {
 public:
  static constexpr int64_t kBytes = int64_t{64} << 20;  // what passes at one time

  explicit Staging(Stream* stream) : stream_(stream) {}
  // `memory` for the host to read, and to write until it is sent: memory itself, or as many bytes of the staging.
  std::span<std::byte> host(std::span<std::byte> memory);
  std::span<const std::byte> read(std::span<std::byte> memory);             // the contents; valid until the next call
  void send(std::span<const std::byte> host, std::span<std::byte> memory);  // memory = what was written to host()

 private:
  Stream* stream_;
  Buffer<std::byte> buffer_;
};

// How many local rows of a table pass at one time: all if they are in host memory.
int64_t rows_at_once(const ShardedTable& table);

}  // namespace pkmesh
