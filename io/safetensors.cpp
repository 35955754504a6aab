// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

namespace pkmesh {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");

constexpr int64_t kPrefix = 8;                    // the header's length
constexpr int64_t kAlignment = 64;                // of the data in the file
constexpr uint64_t kLongestHeader = 100'000'000;  // the format's own limit
constexpr const char* kMetadataKey = "__metadata__";

struct DTypeFacts {
  DType dtype;
  std::string_view name;
  int64_t bytes;
};
constexpr std::array<DTypeFacts, 8> kDTypes = {{{DType::kF64, "F64", 8},
                                                {DType::kF32, "F32", 4},
                                                {DType::kF16, "F16", 2},
                                                {DType::kBF16, "BF16", 2},
                                                {DType::kI64, "I64", 8},
                                                {DType::kI32, "I32", 4},
                                                {DType::kU32, "U32", 4},
                                                {DType::kU8, "U8", 1}}};

const DTypeFacts& facts(DType dtype) {
  return kDTypes[static_cast<size_t>(dtype)];
}

// A name out of a foreign file, fit for one line.
std::string quoted(const std::string& name) {
  constexpr size_t kLongest = 80;
  const std::string text = json(name).dump(-1, ' ', /*ensure_ascii=*/true);
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
}

// What is wrong with a header, in words; the caller adds the file's name.
struct Malformed {
  std::string what;
};

int64_t to_size(const json& value, const std::string& name, const char* what) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > std::numeric_limits<int64_t>::max())
    throw Malformed{fmt::format("{} of {} is not a size", what, quoted(name))};
  return value.get<int64_t>();
}

// The size in bytes, or Malformed if it passes 2^63.
int64_t checked_bytes(const TensorInfo& tensor) {
  int64_t bytes = dtype_bytes(tensor.dtype);
  for (const int64_t size : tensor.shape)
    if (__builtin_mul_overflow(bytes, size, &bytes))
      throw Malformed{fmt::format("the shape of {} is too large", quoted(tensor.name))};
  return bytes;
}

// One entry of the header; data_bytes is what follows the header, which begins at data_begin.
TensorInfo parse_tensor(const std::string& name, const json& entry, int64_t data_begin, int64_t data_bytes) {
  const auto malformed = [&](const char* what) { throw Malformed{fmt::format("{} {}", quoted(name), what)}; };
  if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() || !entry.contains("shape") ||
      !entry["shape"].is_array() || !entry.contains("data_offsets") || !entry["data_offsets"].is_array() ||
      entry["data_offsets"].size() != 2)
    malformed("lacks dtype, shape or data_offsets");
  TensorInfo tensor;
  tensor.name = name;
  const auto& dtype = entry["dtype"].get_ref<const std::string&>();
  const auto* known = std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& f) { return f.name == dtype; });
  if (known == kDTypes.end()) malformed("has a dtype that is not read here");
  tensor.dtype = known->dtype;
  for (const json& size : entry["shape"]) tensor.shape.push_back(to_size(size, name, "the shape"));
  const int64_t begin = to_size(entry["data_offsets"][0], name, "an offset");
  const int64_t end = to_size(entry["data_offsets"][1], name, "an offset");
  if (begin > end || end > data_bytes) malformed("lies outside the file; the file may be truncated");
  if (checked_bytes(tensor) != end - begin) malformed("has a shape that does not match its bytes");
  tensor.begin = data_begin + begin;
  return tensor;
}

// Tensors by their place, ends before beginnings: a tensor without elements precedes the one that begins there.
void sort_by_place(std::vector<TensorInfo>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.begin, a.bytes()) < std::pair(b.begin, b.bytes());
  });
}

void check_no_gaps(const std::vector<TensorInfo>& tensors, int64_t data_begin, int64_t file_bytes) {
  int64_t end = data_begin;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin != end)
      throw Malformed{fmt::format("{} {} the tensor before it", quoted(tensor.name),
                                  tensor.begin < end ? "overlaps" : "leaves a gap after")};
    end += tensor.bytes();
  }
  if (end != file_bytes) throw Malformed{fmt::format("{} bytes belong to no tensor", file_bytes - end)};
}

void parse_header(std::span<const std::byte> file, SafetensorsMetadata& metadata, std::vector<TensorInfo>& tensors) {
  if (file.size() < kPrefix) throw Malformed{"it is too short for a header"};
  uint64_t length = 0;
  std::memcpy(&length, file.data(), kPrefix);
  if (length > kLongestHeader || length > file.size() - kPrefix)
    throw Malformed{fmt::format("its header of {} bytes does not fit; the file may be truncated", length)};
  const auto* text = reinterpret_cast<const char*>(file.data()) + kPrefix;
  const json header = json::parse(text, text + length, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) throw Malformed{"its header is not a JSON object"};
  const int64_t data_begin = kPrefix + static_cast<int64_t>(length);
  const int64_t file_bytes = static_cast<int64_t>(file.size());
  for (const auto& [name, entry] : header.items()) {
    if (name != kMetadataKey) {
      tensors.push_back(parse_tensor(name, entry, data_begin, file_bytes - data_begin));
      continue;
    }
    if (!entry.is_object()) throw Malformed{"its metadata is not an object"};
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) throw Malformed{fmt::format("its metadata {} is not a string", quoted(key))};
      metadata[key] = value.get<std::string>();
    }
  }
  sort_by_place(tensors);
  check_no_gaps(tensors, data_begin, file_bytes);
}

}  // namespace

int64_t dtype_bytes(DType dtype) {
  return facts(dtype).bytes;
}
std::string_view dtype_name(DType dtype) {
  return facts(dtype).name;
}

int64_t TensorInfo::count() const {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

std::string shape_text(std::span<const int64_t> shape) {
  return fmt::format("({})", fmt::join(shape, ", "));
}

void create_safetensors(const std::string& path, std::vector<TensorInfo> tensors, const SafetensorsMetadata& metadata) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return dtype_bytes(a.dtype) > dtype_bytes(b.dtype);
  });
  json header = json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  int64_t end = 0;
  for (const TensorInfo& tensor : tensors) {
    PKM_CHECK(!header.contains(tensor.name), "{}: two tensors are named {}", path, tensor.name);
    header[tensor.name] = {
        {"dtype", dtype_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {end, end + tensor.bytes()}}};
    end += tensor.bytes();
  }
  std::string text = header.dump();
  const int64_t unpadded = kPrefix + static_cast<int64_t>(text.size());
  text.append(static_cast<size_t>((kAlignment - unpadded % kAlignment) % kAlignment), ' ');
  const uint64_t length = text.size();
  PKM_CHECK(length <= kLongestHeader, "{}: a header of {} bytes", path, length);
  std::string prefix(kPrefix, '\0');
  std::memcpy(prefix.data(), &length, kPrefix);

  File file = File::create(path);
  file.reserve(kPrefix + static_cast<int64_t>(length) + end);
  file.append(prefix + text);
}

Safetensors::Safetensors(const std::string& path) : path_(path), file_(path) {
  try {
    parse_header(file_.bytes(), metadata_, tensors_);
  } catch (const Malformed& malformed) {
    user_error("{}: not a good safetensors file: {}; copy or write it again", path, malformed.what);
  }
}

const TensorInfo* Safetensors::find(std::string_view name) const {
  const auto found = std::find_if(tensors_.begin(), tensors_.end(), [&](const auto& t) { return t.name == name; });
  return found == tensors_.end() ? nullptr : &*found;
}

const TensorInfo& Safetensors::at(std::string_view name) const {
  const TensorInfo* tensor = find(name);
  if (tensor == nullptr) user_error("{}: holds no tensor {}; was it written by another model?", path_, name);
  return *tensor;
}

std::span<const std::byte> Safetensors::bytes(const TensorInfo& tensor) const {
  return file_.bytes().subspan(static_cast<size_t>(tensor.begin), static_cast<size_t>(tensor.bytes()));
}

void Safetensors::require(const TensorInfo& tensor, DType dtype) const {
  if (tensor.dtype != dtype)
    user_error("{}: {} is {}, expected {}; was it written by another model?", path_, tensor.name,
               dtype_name(tensor.dtype), dtype_name(dtype));
  if (tensor.begin % dtype_bytes(dtype) != 0)  // other writers may pack them so; the bytes are good all the same
    user_error("{}: {} is not aligned to its elements; write the file again with pkmesh", path_, tensor.name);
}

SafetensorsWriter::SafetensorsWriter(const std::string& path) : layout_(path), file_(File::open_existing(path)) {}

void SafetensorsWriter::write(std::string_view name, std::span<const std::byte> bytes, int64_t offset) {
  const TensorInfo& tensor = layout_.at(name);
  const auto size = static_cast<int64_t>(bytes.size());
  PKM_CHECK(offset >= 0 && offset + size <= tensor.bytes(), "{}: {} bytes at {} of {}, which has {}", layout_.path(),
            size, offset, name, tensor.bytes());
  file_.write_at(bytes, tensor.begin + offset);
}

}  // namespace pkmesh
