// SPDX-License-Identifier: Apache-2.0
#include "io/checkpoint_manifest.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "io/checkpoint.pb.h"
#include "io/file.h"

namespace pkmesh {
namespace {

constexpr int kFormatVersion = 1;
constexpr std::string_view kSeal = "# xxh3 ";  // begins the manifest's last line

std::string to_hex(uint64_t value) {
  return fmt::format("{:016x}", value);
}

bool from_hex(std::string_view text, uint64_t& value) {
  const char* end = text.data() + text.size();
  return text.size() == 16 && std::from_chars(text.data(), end, value, 16).ptr == end;
}

// Keeps the library's complaints off standard error; we have our own line.
class Silent : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int, google::protobuf::io::ColumnNumber, const std::string&) override {}
};

bool plain_name(const std::string& name) {
  return !name.empty() && name.front() != '.' && name.find('/') == std::string::npos;
}

[[noreturn]] void damaged(const std::string& path, const std::string& what) {
  user_error("{}: {}; use another checkpoint", path, what);
}

// The text above the seal, once the seal is seen to fit it.
std::string unsealed(const std::string& path) {
  std::string text = read_text(path);
  const size_t seal = text.rfind(kSeal);
  uint64_t checksum = 0;
  if (seal == std::string::npos || text.back() != '\n' ||
      !from_hex(std::string_view(text).substr(seal + kSeal.size(), text.size() - 1 - seal - kSeal.size()), checksum))
    damaged(path, "the manifest was altered or truncated: it does not end in its checksum");
  text.resize(seal);
  if (text_checksum(text) != checksum)
    damaged(path, "the manifest was altered or truncated: its checksum does not match");
  return text;
}

DType to_dtype(const std::string& path, const std::string& name) {
  for (const DType dtype :
       {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kI64, DType::kI32, DType::kU32, DType::kU8})
    if (dtype_name(dtype) == name) return dtype;
  damaged(path, "the manifest names an element type that is not known here");
}

void check_table(const std::string& path, const checkpoint::Table& table) {
  bool good = table.rows() >= 0 && table.rows_per_file() >= 1;
  good = good && table.files_size() == (table.rows() + table.rows_per_file() - 1) / table.rows_per_file();
  good = good && std::all_of(table.files().begin(), table.files().end(), plain_name);
  for (const auto& tensor : table.tensors()) good = good && tensor.columns() >= 0;
  if (!good) damaged(path, "the manifest contradicts itself");
}

CheckpointManifest::TableFacts to_facts(const std::string& path, const checkpoint::Table& table) {
  check_table(path, table);
  CheckpointManifest::TableFacts facts{table.name(), table.rows(), table.rows_per_file(), {}, {}};
  facts.files.assign(table.files().begin(), table.files().end());
  for (const auto& tensor : table.tensors())
    facts.tensors.push_back({tensor.name(), to_dtype(path, tensor.dtype()), tensor.columns()});
  return facts;
}

}  // namespace

int64_t CheckpointManifest::TableFacts::row_bytes() const {
  int64_t bytes = 0;
  for (const RowFacts& tensor : tensors) bytes += tensor.columns * dtype_bytes(tensor.dtype);
  return bytes;
}

std::string manifest_text(const CheckpointManifest& manifest) {
  checkpoint::Manifest message;
  message.set_format_version(kFormatVersion);
  message.set_step(manifest.step);
  message.set_ranks(manifest.ranks);
  message.set_corpus(manifest.corpus);
  message.set_tokenizer_hash(manifest.tokenizer_hash);
  for (const auto& file : manifest.files) {
    auto* entry = message.add_files();
    entry->set_name(file.name);
    entry->set_bytes(file.bytes);
    entry->set_xxh3(to_hex(file.checksum));
  }
  for (const TensorInfo& tensor : manifest.dense) {
    auto* entry = message.add_dense();
    entry->set_name(tensor.name);
    entry->set_dtype(std::string(dtype_name(tensor.dtype)));
    entry->mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
  }
  for (const auto& table : manifest.tables) {
    auto* entry = message.add_tables();
    entry->set_name(table.name);
    entry->set_rows(table.rows);
    entry->set_rows_per_file(table.rows_per_file);
    entry->mutable_files()->Assign(table.files.begin(), table.files.end());
    for (const auto& tensor : table.tensors) {
      auto* row = entry->add_tensors();
      row->set_name(tensor.name);
      row->set_dtype(std::string(dtype_name(tensor.dtype)));
      row->set_columns(tensor.columns);
    }
  }
  std::string text;
  PKM_CHECK(google::protobuf::TextFormat::PrintToString(message, &text), "the manifest cannot be printed");
  return fmt::format("{}{}{}\n", text, kSeal, to_hex(text_checksum(text)));
}

CheckpointManifest read_manifest(const std::string& folder) {
  const std::string path = folder + "/" + kManifestFile;
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error)  // else reading it says why not
    user_error("{}: not a whole checkpoint: it has no {}; use another checkpoint", folder, kManifestFile);
  checkpoint::Manifest message;
  google::protobuf::TextFormat::Parser parser;
  Silent silent;
  parser.RecordErrorsTo(&silent);
  if (!parser.ParseFromString(unsealed(path), &message)) damaged(path, "the manifest cannot be understood");
  if (message.format_version() != kFormatVersion)
    user_error("{}: format version {} is not read by this program, which reads {}; use a matching pkmesh", path,
               message.format_version(), kFormatVersion);
  if (message.step() < 0 || message.ranks() < 1)
    damaged(path, fmt::format("the manifest says step {}, by {} ranks", message.step(), message.ranks()));
  CheckpointManifest manifest;
  manifest.step = message.step();
  const auto named = step_of(std::filesystem::path(folder).filename().string());
  if (named.value_or(manifest.step) != manifest.step)  // the newest, and those that go, are told by their names
    user_error("{}: is of step {} by its manifest; give the folder its name, {}", folder, manifest.step,
               checkpoint_name(manifest.step));
  manifest.ranks = message.ranks();
  manifest.corpus = message.corpus();
  manifest.tokenizer_hash = message.tokenizer_hash();
  for (const auto& file : message.files()) {
    uint64_t checksum = 0;
    if (!plain_name(file.name()) || !from_hex(file.xxh3(), checksum))
      damaged(path, "the manifest names no proper file");
    manifest.files.push_back({file.name(), file.bytes(), checksum});
  }
  for (const auto& tensor : message.dense()) {
    const std::vector<int64_t> shape(tensor.shape().begin(), tensor.shape().end());
    manifest.dense.push_back({tensor.name(), to_dtype(path, tensor.dtype()), shape});
  }
  for (const auto& table : message.tables()) manifest.tables.push_back(to_facts(path, table));
  return manifest;
}

std::optional<std::string> file_fault(const std::string& path, const CheckpointManifest::FileFacts& file) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path + "/" + file.name, error);
  if (error) return "is missing";
  if (static_cast<int64_t>(bytes) != file.bytes) return fmt::format("has {} bytes, expected {}", bytes, file.bytes);
  if (file_checksum(path + "/" + file.name) != file.checksum) return "was altered: its checksum does not match";
  return std::nullopt;
}

OwnedRows::OwnedRows(const ShardedTable& table, int64_t begin, int64_t end) {
  rows_.reserve(static_cast<size_t>(end - begin));
  bool ascending = true;
  for (int64_t local = begin; local < end; ++local) {
    const int64_t global = table.global_row(local);
    PKM_CHECK(global >= 0 && global < table.rows, "{}: local row {} is row {} of {}", table.name, local, global,
              table.rows);
    ascending = ascending && (rows_.empty() || rows_.back().global < global);
    rows_.push_back({global, local});
  }
  if (!ascending) std::sort(rows_.begin(), rows_.end(), [](const Row& a, const Row& b) { return a.global < b.global; });
}

std::pair<size_t, size_t> OwnedRows::span_of(int64_t begin, int64_t end) const {
  const auto below = [](const Row& row, int64_t global) { return row.global < global; };
  const auto first = std::lower_bound(rows_.begin(), rows_.end(), begin, below);
  const auto last = std::lower_bound(first, rows_.end(), end, below);
  return {static_cast<size_t>(first - rows_.begin()), static_cast<size_t>(last - rows_.begin())};
}

bool OwnedRows::any_in(int64_t begin, int64_t end) const {
  const auto [first, last] = span_of(begin, end);
  return first < last;
}

namespace {
int64_t row_hash(int64_t row) {  // the finalizer of SplitMix64, upper half
  uint64_t x = static_cast<uint64_t>(row) + 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return static_cast<int64_t>((x ^ (x >> 31)) >> 32);
}
}  // namespace

int64_t OwnedRows::fingerprint() const {
  int64_t sum = 0;
  for (const Row& row : rows_) sum += row_hash(row.global);
  return sum;
}
int64_t OwnedRows::fingerprint(int64_t begin, int64_t end) {
  int64_t sum = 0;
  for (int64_t row = begin; row < end; ++row) sum += row_hash(row);
  return sum;
}

std::span<std::byte> Staging::host(std::span<std::byte> memory) {
  if (!on_device(memory.data())) return memory;
  PKM_CHECK(stream_ != nullptr, "a checkpoint of device memory needs a stream");
  if (buffer_.count() < std::ssize(memory))
    buffer_ = Buffer<std::byte>(stream_->device(), std::ssize(memory), MemoryKind::kHost);
  return buffer_.span().first(memory.size());
}

std::span<const std::byte> Staging::read(std::span<std::byte> memory) {
  const std::span<std::byte> bytes = host(memory);
  if (bytes.data() == memory.data()) return bytes;
  copy(*stream_, memory, bytes);
  stream_->synchronize();
  return bytes;
}

void Staging::send(std::span<const std::byte> host, std::span<std::byte> memory) {
  if (host.data() == memory.data()) return;
  copy(*stream_, host, memory);
  stream_->synchronize();  // the staging is written to again
}

int64_t rows_at_once(const ShardedTable& table) {
  int64_t bytes = 0;
  bool device = false;
  for (const RowTensor& tensor : table.tensors) {
    bytes = std::max(bytes, tensor.row_bytes());
    device = device || on_device(tensor.bytes.data());
  }
  return device ? std::max<int64_t>(Staging::kBytes / std::max<int64_t>(bytes, 1), 1)
                : std::max<int64_t>(table.local_rows, 1);
}

}  // namespace pkmesh
