// SPDX-License-Identifier: Apache-2.0
// Saving: rank 0 makes the temporary folder and all files in full size; every rank writes what it has where it belongs;
// the ranks share the checksums; rank 0 writes the manifest and renames the folder. Each stage ends in agreement.
#include <fcntl.h>
#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>
#include <system_error>

#include "comm/agree.h"
#include "io/checkpoint_manifest.h"
#include "runtime/log.h"
#include "runtime/random.h"
#include "runtime/range.h"

namespace pkmesh {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTemporaryPrefix = ".step_";
constexpr std::string_view kTemporarySuffix = ".tmp";

// A table's name as part of a file's name.
std::string file_stem(const std::string& name) {
  std::string stem = name;
  for (char& c : stem)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-' && c != '_') c = '_';
  return stem;
}

CheckpointManifest::TableFacts plan_table(const ShardedTable& table, int64_t file_bytes) {
  CheckpointManifest::TableFacts facts{table.name, table.rows, 1, {}, {}};
  for (const RowTensor& tensor : table.tensors) {
    PKM_CHECK(static_cast<int64_t>(tensor.bytes.size()) == table.local_rows * tensor.row_bytes(),
              "{}: {} has {} bytes for {} rows of {}", table.name, tensor.name, tensor.bytes.size(), table.local_rows,
              tensor.row_bytes());
    facts.tensors.push_back({tensor.name, tensor.dtype, tensor.columns});
  }
  facts.rows_per_file = std::max<int64_t>(1, file_bytes / std::max<int64_t>(1, facts.row_bytes()));
  const int64_t files = (facts.rows + facts.rows_per_file - 1) / facts.rows_per_file;
  for (int64_t i = 0; i < files; ++i)
    facts.files.push_back(fmt::format("table-{}-{:05}-of-{:05}.safetensors", file_stem(table.name), i, files));
  return facts;
}

// Everything but sizes and checksums: what the manifest says follows from the contents alone, so all ranks know it.
CheckpointManifest plan(const CheckpointFacts& facts, const CheckpointContents& contents, int ranks,
                        int64_t file_bytes) {
  CheckpointManifest manifest;
  manifest.step = facts.step;
  manifest.ranks = ranks;
  manifest.corpus = facts.corpus;
  manifest.tokenizer_hash = facts.tokenizer_hash;
  manifest.files = {{kConfigFile}, {kDenseFile}};
  for (const auto& [name, text] : facts.attachments) manifest.files.push_back({name});
  for (const DenseTensor& tensor : contents.dense) {
    tensor.check();
    manifest.dense.push_back(tensor.info);
  }
  for (const ShardedTable& table : contents.tables) {
    manifest.tables.push_back(plan_table(table, file_bytes));
    for (const std::string& file : manifest.tables.back().files) manifest.files.push_back({file});
  }
  std::set<std::string> names = {kManifestFile};
  for (const auto& file : manifest.files)
    PKM_CHECK(names.insert(file.name).second, "two files of a checkpoint would be named {}", file.name);
  return manifest;
}

void create_dense_file(const std::string& path, const std::vector<DenseTensor>& dense) {
  std::vector<TensorInfo> infos;
  for (const DenseTensor& tensor : dense) infos.push_back(tensor.info);
  create_safetensors(path, infos, {{"format", "pt"}});
}

// This rank's parts; and rank 0, for all, what all ranks have.
void write_dense(const std::string& path, const std::vector<DenseTensor>& dense, int rank, Stream* stream) {
  const auto writes = [&](const DenseTensor& tensor) { return (rank == 0 || tensor.cut) && !tensor.parts.empty(); };
  if (std::ranges::none_of(dense, writes)) return;
  SafetensorsWriter writer(path);
  Staging staging(stream);
  for (const DenseTensor& tensor : dense) {
    if (!writes(tensor)) continue;
    for (const auto& [begin, all] : tensor.parts)
      for (size_t done = 0; done < all.size(); done += Staging::kBytes)
        writer.write(tensor.info.name,
                     staging.read(all.subspan(done, std::min<size_t>(Staging::kBytes, all.size() - done))),
                     begin + static_cast<int64_t>(done));
  }
  writer.sync();
}

void create_range_files(const std::string& folder, const CheckpointManifest::TableFacts& table) {
  for (size_t i = 0; i < table.files.size(); ++i) {
    const int64_t begin = static_cast<int64_t>(i) * table.rows_per_file;
    const int64_t end = std::min(table.rows, begin + table.rows_per_file);
    std::vector<TensorInfo> infos;
    for (const auto& tensor : table.tensors)
      infos.push_back({tensor.name, tensor.dtype, {end - begin, tensor.columns}});
    create_safetensors(folder + "/" + table.files[i], infos,
                       {{"format", "pt"},
                        {"table", table.name},
                        {"rows", std::to_string(table.rows)},
                        {"row_begin", std::to_string(begin)},
                        {"row_end", std::to_string(end)}});
  }
}

// Rows that this rank has, into whichever files they belong. bytes[t] (host memory) begins with local row `first` of
// tensor t.
void write_rows(const std::string& folder, const CheckpointManifest::TableFacts& facts, const ShardedTable& table,
                const OwnedRows& owned, int64_t first, std::span<const std::span<const std::byte>> bytes) {
  for (size_t i = 0; i < facts.files.size(); ++i) {
    const int64_t begin = static_cast<int64_t>(i) * facts.rows_per_file;
    const int64_t end = std::min(facts.rows, begin + facts.rows_per_file);
    if (!owned.any_in(begin, end)) continue;
    SafetensorsWriter writer(folder + "/" + facts.files[i]);
    for (size_t t = 0; t < table.tensors.size(); ++t) {
      owned.for_each_run(begin, end, [&](int64_t global, int64_t local, int64_t count) {
        const int64_t row = table.tensors[t].row_bytes();
        writer.write(table.tensors[t].name,
                     bytes[t].subspan(static_cast<size_t>((local - first) * row), static_cast<size_t>(count * row)),
                     (global - begin) * row);
      });
    }
  }
}

// All of this rank's rows of one table.
void write_table(const std::string& folder, const CheckpointManifest::TableFacts& facts, const ShardedTable& table,
                 const OwnedRows& owned, Stream* stream) {
  const int64_t at_once = rows_at_once(table);
  std::vector<Staging> staging;
  for (size_t t = 0; t < table.tensors.size(); ++t) staging.emplace_back(stream);
  for (int64_t first = 0; first < table.local_rows; first += at_once) {
    const int64_t last = std::min(table.local_rows, first + at_once);
    std::vector<std::span<const std::byte>> bytes;
    for (size_t t = 0; t < table.tensors.size(); ++t) {
      const int64_t row = table.tensors[t].row_bytes();
      bytes.push_back(staging[t].read(
          table.tensors[t].bytes.subspan(static_cast<size_t>(first * row), static_cast<size_t>((last - first) * row))));
    }
    if (last - first == table.local_rows)
      write_rows(folder, facts, table, owned, first, bytes);
    else
      write_rows(folder, facts, table, OwnedRows(table, first, last), first, bytes);
  }
  for (size_t i = 0; i < facts.files.size(); ++i) {
    const int64_t begin = static_cast<int64_t>(i) * facts.rows_per_file;
    if (owned.any_in(begin, std::min(facts.rows, begin + facts.rows_per_file)))
      SafetensorsWriter(folder + "/" + facts.files[i]).sync();
  }
}

// Collective: no row of the table is missing or on two ranks.
void check_ownership(Communicator& world, const ShardedTable& table, const OwnedRows& owned) {
  const int64_t rank = world.rank();
  const int64_t begin = table.rows * rank / world.size();
  const int64_t end = table.rows * (rank + 1) / world.size();
  std::array<int64_t, 3> sums = {owned.count(), owned.fingerprint(), OwnedRows::fingerprint(begin, end)};
  world.all_reduce(std::span<int64_t>(sums), Reduction::kSum, Purpose::kControl);
  PKM_CHECK(sums[0] == table.rows && sums[1] == sums[2], "{}: the ranks hold {} rows of {}, or not each row once",
            table.name, sums[0], table.rows);
}

// Collective: the parts of the tensors that are cut meet end to end. Each end counts for, each beginning against: what
// is left is that of the whole tensors.
void check_parts(Communicator& world, const std::vector<DenseTensor>& dense) {
  const auto mark = [](size_t tensor, int64_t at) {
    return static_cast<int64_t>(Random(tensor, "parts").bits(static_cast<uint64_t>(at)));
  };
  int64_t open = 0;
  for (size_t i = 0; i < dense.size(); ++i) {
    const DenseTensor& tensor = dense[i];
    if (!tensor.cut) continue;
    for (const auto& [begin, bytes] : tensor.parts) open += mark(i, begin + std::ssize(bytes)) - mark(i, begin);
    if (world.rank() == 0) open -= mark(i, tensor.info.bytes()) - mark(i, 0);
  }
  world.all_reduce(std::span<int64_t>(&open, 1), Reduction::kSum, Purpose::kControl);
  PKM_CHECK(open == 0, "the ranks' parts of a dense tensor do not make it up");
}

// Collective: fills in sizes and checksums, file i by rank i % ranks.
void seal_files(Communicator& world, const std::string& folder, std::vector<CheckpointManifest::FileFacts>& files) {
  std::vector<int64_t> sums(files.size() * 2);
  agree(world, [&] {
    for (size_t i = static_cast<size_t>(world.rank()); i < files.size(); i += static_cast<size_t>(world.size())) {
      const std::string path = folder + "/" + files[i].name;
      std::error_code error;
      const auto bytes = fs::file_size(path, error);
      if (error) user_error("{}: cannot be read: {}; save again", path, error.message());
      sums[2 * i] = static_cast<int64_t>(bytes);
      sums[2 * i + 1] = static_cast<int64_t>(file_checksum(path));
    }
  });
  world.all_reduce(std::span<int64_t>(sums), Reduction::kSum, Purpose::kControl);  // one term of each sum is not zero
  for (size_t i = 0; i < files.size(); ++i) {
    files[i].bytes = sums[2 * i];
    files[i].checksum = static_cast<uint64_t>(sums[2 * i + 1]);
  }
}

// What a crash left behind. Two runs never share a folder.
void remove_leftovers(const std::string& folder) {
  for (const std::string& name : list_folder(folder))
    if (name.starts_with(kTemporaryPrefix) && name.ends_with(kTemporarySuffix))
      remove_quietly(fmt::format("{}/{}", folder, name));
}

// The complete folder takes its name. One of the same step changes places with it first, so that the name never stands
// for less than a whole checkpoint.
void publish(const std::string& temporary, const std::string& path, const std::string& folder) {
  sync_folder(temporary);
  std::error_code error;
  if (fs::exists(path, error) &&
      ::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) == 0) {
    remove_quietly(temporary);
  } else {
    if (fs::exists(path, error)) remove_quietly(path);  // a file system that cannot exchange
    fs::rename(temporary, path, error);
    if (error) user_error("{}: cannot be renamed to {}: {}; choose another folder", temporary, path, error.message());
  }
  sync_folder(folder);
}

void write_all(Communicator& world, const std::string& temporary, const CheckpointFacts& facts,
               const CheckpointContents& contents, CheckpointManifest& manifest) {
  agree(world, [&] {
    if (world.rank() != 0) return;
    remove_leftovers(fs::path(temporary).parent_path().string());
    make_folder(temporary);
    replace_text(temporary + "/" + kConfigFile, facts.config_text);
    for (const auto& [name, text] : facts.attachments) replace_text(fmt::format("{}/{}", temporary, name), text);
    for (const auto& table : manifest.tables) create_range_files(temporary, table);
    create_dense_file(temporary + "/" + kDenseFile, contents.dense);
  });
  check_parts(world, contents.dense);
  agree(world, [&] { write_dense(temporary + "/" + kDenseFile, contents.dense, world.rank(), contents.stream); });
  for (size_t i = 0; i < contents.tables.size(); ++i) {
    const OwnedRows owned(contents.tables[i]);
    check_ownership(world, contents.tables[i], owned);
    agree(world, [&] { write_table(temporary, manifest.tables[i], contents.tables[i], owned, contents.stream); });
  }
  seal_files(world, temporary, manifest.files);
}

}  // namespace

std::string save_checkpoint(Communicator& world, const std::string& folder, const CheckpointFacts& facts,
                            const CheckpointContents& contents, const SaveOptions& options) {
  const Range range("save checkpoint");
  const std::string name = checkpoint_name(facts.step);
  std::string path = folder + "/" + name;
  const std::string temporary = fmt::format("{}/.{}{}", folder, name, kTemporarySuffix);
  CheckpointManifest manifest = plan(facts, contents, world.size(), options.file_bytes);
  try {
    agree(world, [&] {
      if (world.rank() == 0) make_folder(folder);
    });
    write_all(world, temporary, facts, contents, manifest);
    agree(world, [&] {
      if (world.rank() != 0) return;
      replace_text(temporary + "/" + kManifestFile, manifest_text(manifest));
      publish(temporary, path, folder);
    });
  } catch (const UserError&) {  // on all ranks alike
    if (world.rank() == 0) remove_quietly(temporary);
    throw;
  }
  if (world.rank() != 0) return path;
  try {
    prune_checkpoints(folder, options.keep);
  } catch (const UserError& error) {  // one too many is no reason to end a run
    log_warning("old checkpoints are kept: {}", error.what());
  }
  return path;
}

}  // namespace pkmesh
