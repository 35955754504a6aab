// SPDX-License-Identifier: Apache-2.0
// Loading: every rank holds the manifest against the model, the ranks share the checksums, and only then each copies
// what it owns out of the mapped files.
#include <algorithm>
#include <cstring>
#include <set>

#include "comm/agree.h"
#include "io/checkpoint_manifest.h"
#include "runtime/parallel.h"
#include "runtime/range.h"

namespace pkmesh {
namespace {

constexpr const char* kMend = "use the configuration that the checkpoint was written with";

std::string describe(const TensorInfo& tensor) {
  return fmt::format("{} {}", dtype_name(tensor.dtype), shape_text(tensor.shape));
}

template <class Items>
auto find_named(const Items& items, const std::string& name) {
  return std::find_if(items.begin(), items.end(), [&](const auto& item) { return item.name == name; });
}

void match_dense(const std::string& path, const CheckpointManifest& manifest, const std::vector<DenseTensor>& dense,
                 bool exact) {
  std::map<std::string_view, const TensorInfo*> stored;
  for (const TensorInfo& tensor : manifest.dense) stored[tensor.name] = &tensor;
  for (const DenseTensor& tensor : dense) {
    const TensorInfo& want = tensor.info;
    tensor.check();
    const auto found = stored.find(want.name);
    if (found == stored.end()) user_error("{}: holds no tensor {}; {}", path, want.name, kMend);
    if (found->second->dtype != want.dtype || found->second->shape != want.shape)
      user_error("{}: tensor {} is {}, the model's is {}; {}", path, want.name, describe(*found->second),
                 describe(want), kMend);
    stored.erase(found);
  }
  if (exact && !stored.empty()) user_error("{}: the model has no tensor {}; {}", path, stored.begin()->first, kMend);
}

void match_table(const std::string& path, const CheckpointManifest::TableFacts& stored, const ShardedTable& table,
                 bool exact) {
  if (stored.rows != table.rows)
    user_error("{}: table {} has {} rows, the model's has {}; {}", path, table.name, stored.rows, table.rows, kMend);
  std::set<std::string> wanted;
  for (const RowTensor& tensor : table.tensors) {
    PKM_CHECK(static_cast<int64_t>(tensor.bytes.size()) == table.local_rows * tensor.row_bytes(),
              "{}: {} has {} bytes for {} rows", table.name, tensor.name, tensor.bytes.size(), table.local_rows);
    wanted.insert(tensor.name);
    const auto found = find_named(stored.tensors, tensor.name);
    if (found == stored.tensors.end()) user_error("{}: table {} holds no {}; {}", path, table.name, tensor.name, kMend);
    if (found->dtype != tensor.dtype || found->columns != tensor.columns)
      user_error("{}: table {}: {} is {} with {} columns, the model's is {} with {}; {}", path, table.name, tensor.name,
                 dtype_name(found->dtype), found->columns, dtype_name(tensor.dtype), tensor.columns, kMend);
  }
  for (const auto& tensor : stored.tensors)
    if (exact && !wanted.contains(tensor.name))
      user_error("{}: the model's table {} has no {}; {}", path, table.name, tensor.name, kMend);
}

void match(const std::string& path, const CheckpointManifest& manifest, const CheckpointContents& contents,
           bool exact) {
  match_dense(path, manifest, contents.dense, exact);
  for (const ShardedTable& table : contents.tables) {
    const auto found = find_named(manifest.tables, table.name);
    if (found == manifest.tables.end()) user_error("{}: holds no table {}; {}", path, table.name, kMend);
    match_table(path, *found, table, exact);
  }
  for (const auto& table : manifest.tables)
    if (exact && find_named(contents.tables, table.name) == contents.tables.end())
      user_error("{}: the model has no table {}; {}", path, table.name, kMend);
}

void refuse_fault(const std::string& path, const CheckpointManifest::FileFacts& file) {
  if (const auto fault = file_fault(path, file))
    user_error("{}/{}: {}; use another checkpoint", path, file.name, *fault);
}

// This rank's share of the files.
void verify_files(const Communicator& world, const std::string& path, const CheckpointManifest& manifest) {
  for (size_t i = static_cast<size_t>(world.rank()); i < manifest.files.size(); i += static_cast<size_t>(world.size()))
    refuse_fault(path, manifest.files[i]);
}

// The same on all ranks, unless each has a disk of its own under that name.
std::string describe_files(const CheckpointManifest& manifest) {
  std::string text;
  for (const auto& file : manifest.files)
    text += fmt::format("{}, {} bytes, {:016x}\n", file.name, file.bytes, file.checksum);
  return text;
}

// A tensor of a file, seen to be what the manifest says it is.
std::span<const std::byte> stored_bytes(const Safetensors& file, const std::string& name, DType dtype,
                                        std::span<const int64_t> shape) {
  const TensorInfo& tensor = file.at(name);
  if (tensor.dtype != dtype || !std::equal(tensor.shape.begin(), tensor.shape.end(), shape.begin(), shape.end()))
    user_error("{}: tensor {} is {}, the manifest says {} {}; use another checkpoint", file.path(), name,
               describe(tensor), dtype_name(dtype), shape_text(shape));
  return file.bytes(tensor);
}

void copy_bytes(std::span<const std::byte> from, std::span<std::byte> to) {
  constexpr int64_t kGrain = int64_t{1} << 20;
  parallel_for(0, static_cast<int64_t>(to.size()), kGrain,
               [&](int64_t begin, int64_t end) { std::memcpy(to.data() + begin, from.data() + begin, end - begin); });
}

void read_dense(const std::string& path, const std::vector<DenseTensor>& dense, Stream* stream) {
  const Safetensors file(path + "/" + kDenseFile);
  Staging staging(stream);
  for (const DenseTensor& tensor : dense) {
    const auto stored = stored_bytes(file, tensor.info.name, tensor.info.dtype, tensor.info.shape);
    for (const auto& [begin, bytes] : tensor.parts)
      for (size_t done = 0; done < bytes.size(); done += Staging::kBytes) {
        const auto memory = bytes.subspan(done, std::min<size_t>(Staging::kBytes, bytes.size() - done));
        const auto host = staging.host(memory);
        copy_bytes(stored.subspan(static_cast<size_t>(begin) + done, memory.size()), host);
        staging.send(host, memory);
      }
  }
}

// Local rows [first, ...) that this rank has, out of whichever files they stand in. bytes[t] (host memory) begins with
// row `first` of tensor t.
void read_rows(const std::string& path, const CheckpointManifest::TableFacts& facts, const ShardedTable& table,
               const OwnedRows& owned, int64_t first, std::span<const std::span<std::byte>> bytes) {
  for (size_t i = 0; i < facts.files.size(); ++i) {
    const int64_t begin = static_cast<int64_t>(i) * facts.rows_per_file;
    const int64_t end = std::min(facts.rows, begin + facts.rows_per_file);
    if (!owned.any_in(begin, end)) continue;
    const Safetensors file(path + "/" + facts.files[i]);
    for (size_t t = 0; t < table.tensors.size(); ++t) {
      const RowTensor& tensor = table.tensors[t];
      const std::array<int64_t, 2> shape = {end - begin, tensor.columns};
      const auto stored = stored_bytes(file, tensor.name, tensor.dtype, shape);
      const int64_t row = tensor.row_bytes();
      owned.for_each_run(begin, end, [&](int64_t global, int64_t local, int64_t count) {
        copy_bytes(stored.subspan(static_cast<size_t>((global - begin) * row), static_cast<size_t>(count * row)),
                   bytes[t].subspan(static_cast<size_t>((local - first) * row), static_cast<size_t>(count * row)));
      });
    }
  }
}

void read_table(const std::string& path, const CheckpointManifest::TableFacts& facts, const ShardedTable& table,
                Stream* stream) {
  const int64_t at_once = rows_at_once(table);
  std::vector<Staging> staging;
  for (size_t t = 0; t < table.tensors.size(); ++t) staging.emplace_back(stream);
  for (int64_t first = 0; first < table.local_rows; first += at_once) {
    const int64_t last = std::min(table.local_rows, first + at_once);
    std::vector<std::span<std::byte>> memory;
    std::vector<std::span<std::byte>> bytes;
    for (size_t t = 0; t < table.tensors.size(); ++t) {
      const int64_t row = table.tensors[t].row_bytes();
      memory.push_back(
          table.tensors[t].bytes.subspan(static_cast<size_t>(first * row), static_cast<size_t>((last - first) * row)));
      bytes.push_back(staging[t].host(memory[t]));
    }
    read_rows(path, facts, table, OwnedRows(table, first, last), first, bytes);
    for (size_t t = 0; t < table.tensors.size(); ++t) staging[t].send(bytes[t], memory[t]);
  }
}

CheckpointFacts read_facts(const std::string& path, const CheckpointManifest& manifest) {
  CheckpointFacts facts{manifest.step, {}, manifest.corpus, manifest.tokenizer_hash, {}};
  for (const auto& file : manifest.files) {
    if (file.name.ends_with(".safetensors")) continue;
    refuse_fault(path, file);  // first: what a damaged one says would pass for the user's mistake
    (file.name == kConfigFile ? facts.config_text : facts.attachments[file.name]) = read_text(path + "/" + file.name);
  }
  return facts;
}

}  // namespace

CheckpointFacts read_checkpoint_facts(const std::string& path) {
  return read_facts(path, read_manifest(path));
}

CheckpointFacts load_checkpoint(Communicator& world, const std::string& path, const CheckpointContents& contents,
                                const LoadOptions& options) {
  const Range range("load checkpoint");
  CheckpointManifest manifest;
  CheckpointFacts facts;
  agree(world, [&] {
    manifest = read_manifest(path);
    match(path, manifest, contents, options.exact);
    verify_files(world, path, manifest);
  });
  agree_on(world, "checkpoint", describe_files(manifest));
  agree(world, [&] {
    facts = read_facts(path, manifest);
    read_dense(path, contents.dense, contents.stream);
    for (const ShardedTable& table : contents.tables)
      read_table(path, *find_named(manifest.tables, table.name), table, contents.stream);
  });
  return facts;
}

}  // namespace pkmesh
