// SPDX-License-Identifier: Apache-2.0
// What saving and loading share: file names, the manifest's text, this rank's rows in global order.
#pragma once

#include "io/checkpoint.h"

namespace pkmesh {

inline constexpr const char* kManifestFile = "manifest.textproto";
inline constexpr const char* kConfigFile = "config.textproto";
inline constexpr const char* kDenseFile = "dense.safetensors";

std::string manifest_text(const CheckpointManifest& manifest);

// This rank's rows of a table, ascending in the global row.
class OwnedRows {
 public:
  explicit OwnedRows(const ShardedTable& table);

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

}  // namespace pkmesh
