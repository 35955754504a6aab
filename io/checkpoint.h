// SPDX-License-Identifier: Apache-2.0
// Checkpoints: folders `step_00012000` that any number of ranks can read, whatever number wrote them, because sharded
// tables are stored in global row order. This module knows tensors and rows, no models. Format: docs/checkpoints.md.
//
// A folder has its final name only once it is whole: it grows as `.step_00012000.tmp`, the manifest with the checksums
// of all files is written last, everything is synced, then the folder is renamed. So whatever happens, the former
// checkpoints stand, and what a crash left behind is ignored, and removed by the next save.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "io/safetensors.h"
#include "runtime/device.h"

namespace pkmesh {

// Parameters, moments, statistics: the same on all ranks, or cut into parts each of which one rank has. Names are
// unique ("adam.m/" + name for moments).
struct DenseTensor {
  struct Part {
    int64_t begin = 0;  // place in the tensor, in bytes
    std::span<std::byte> bytes;
  };
  TensorInfo info;
  std::vector<Part> parts;  // one that is everything; if it is cut, those that this rank has: any number
  bool cut = false;         // the same on all ranks

  void check() const;  // throws InternalError if parts and shape do not fit
};

// What a sharded table keeps per row: values, moments, counters. (local_rows, columns) on this rank.
struct RowTensor {
  std::string name;  // within the table: "values", "m", "v"
  DType dtype = DType::kF32;
  int64_t columns = 0;
  std::span<std::byte> bytes;

  int64_t row_bytes() const { return columns * dtype_bytes(dtype); }
};

// Rows 0 .. rows-1 of which every one lives on exactly one rank.
struct ShardedTable {
  std::string name;
  int64_t rows = 0;        // of all ranks
  int64_t local_rows = 0;  // of this rank
  std::function<int64_t(int64_t local)> global_row;
  std::vector<RowTensor> tensors;  // same names, types and columns on all ranks
};

// Tensors may lie in a GPU's memory: they then pass through the host's in pieces, in the order of `stream`.
struct CheckpointContents {
  std::vector<DenseTensor> dense;
  std::vector<ShardedTable> tables;
  Stream* stream = nullptr;  // may be null if all is in host memory
};

template <class T, int N>
DenseTensor dense_tensor(std::string name, const View<T, N>& view) {
  return {{std::move(name), dtype_of<T>(), {view.shape().begin(), view.shape().end()}},
          {{0, std::as_writable_bytes(view.flat())}}};
}
template <class T>
RowTensor row_tensor(std::string name, const Matrix<T>& rows) {  // (local_rows, columns)
  return {std::move(name), dtype_of<T>(), rows.size(1), std::as_writable_bytes(rows.flat())};
}

// What a checkpoint says about itself.
struct CheckpointFacts {
  int64_t step = 0;
  std::string config_text;  // kept as config.textproto in the folder
  std::string corpus;       // what says which tokens it was trained on; "" in checkpoints of earlier versions
  uint64_t tokenizer_hash = 0;
  std::map<std::string, std::string> attachments;  // more small files of the folder: name -> contents (a tokenizer)
};

struct SaveOptions {
  int64_t keep = 0;                       // whole checkpoints that stay, the new one included; 0: all
  int64_t file_bytes = int64_t{1} << 30;  // most that a file of a table holds, whatever the rank count
};

// Collective. Writes `folder`/step_..., replacing one of the same step, and returns its path. Facts are the same on all
// ranks, and dense tensors that all ranks have are written from rank 0's. A file that cannot be written is a UserError
// on all ranks; then the new folder is gone and the former checkpoints are untouched.
std::string save_checkpoint(Communicator& world, const std::string& folder, const CheckpointFacts& facts,
                            const CheckpointContents& contents, const SaveOptions& options = {});

struct LoadOptions {
  bool exact = true;  // a tensor in the checkpoint that `contents` lacks is an error; off to read parameters alone
};

// Collective. Fills `contents`, whose names, types and shapes the checkpoint must match. Anything that is missing,
// torn, altered (by the checksums of all files, spread over the ranks) or of another shape is a UserError, the same on
// all ranks; nothing is filled before these checks have passed.
CheckpointFacts load_checkpoint(Communicator& world, const std::string& path, const CheckpointContents& contents,
                                const LoadOptions& options = {});

// The manifest: what the checkpoint holds, without reading tensors.
struct CheckpointManifest {
  struct FileFacts {
    std::string name;
    int64_t bytes = 0;
    uint64_t checksum = 0;
  };
  struct RowFacts {
    std::string name;
    DType dtype = DType::kF32;
    int64_t columns = 0;
  };
  struct TableFacts {
    std::string name;
    int64_t rows = 0;
    int64_t rows_per_file = 1;
    std::vector<std::string> files;
    std::vector<RowFacts> tensors;

    int64_t row_bytes() const;
  };
  int64_t step = 0;
  int ranks = 1;
  std::string corpus;
  uint64_t tokenizer_hash = 0;
  std::vector<FileFacts> files;
  std::vector<TensorInfo> dense;
  std::vector<TableFacts> tables;
};

// Throws UserError if there is none, or if it is not whole.
CheckpointManifest read_manifest(const std::string& path);
// Facts and attachments of a checkpoint, to build the model that load_checkpoint then fills.
CheckpointFacts read_checkpoint_facts(const std::string& path);
// What is wrong with the file, in words that go behind its path ("is missing"), or nothing.
std::optional<std::string> file_fault(const std::string& path, const CheckpointManifest::FileFacts& file);

// --- folders of checkpoints; not collective ---
std::string checkpoint_name(int64_t step);                             // "step_00012000"
std::optional<int64_t> step_of(const std::string& name);               // and back; nothing if it is no such name
std::vector<std::string> list_checkpoints(const std::string& folder);  // whole ones, oldest first
std::optional<std::string> newest_folder(const std::string& folder);   // whole or not; nothing if there is none
// Nothing if there is none; UserError if the newest is damaged: to fall back on an older one is the user's decision.
std::optional<std::string> latest_checkpoint(const std::string& folder);
// The checkpoint that a user means: itself, the latest of a folder of them, or the latest of a run. UserError if there
// is none, or it is not whole.
std::string find_checkpoint(const std::string& path);
// Removes all but the last `keep` whole checkpoints; keep < 1 removes none.
void prune_checkpoints(const std::string& folder, int64_t keep);

}  // namespace pkmesh
