// SPDX-License-Identifier: Apache-2.0
// safetensors, the format that Python's `safetensors` package reads: 8 bytes of header length (little-endian), the
// header (JSON: name -> dtype, shape, data_offsets; "__metadata__" -> strings), then the tensors, row-major, one after
// the other without a gap (https://huggingface.co/docs/safetensors).
//
// Here the header is padded so that the data begins at a multiple of 64, and wider elements come first: every tensor
// lies aligned to its element. A file is created once with its full size; then anyone may write ranges of it.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"
#include "runtime/bf16.h"
#include "runtime/fp16.h"
#include "runtime/view.h"

namespace pkmesh {

enum class DType { kF64, kF32, kF16, kBF16, kI64, kI32, kU32, kU8 };

int64_t dtype_bytes(DType dtype);          // of one element
std::string_view dtype_name(DType dtype);  // "F32"

template <class T>
constexpr DType dtype_of() {
  using U = std::remove_const_t<T>;
  if constexpr (std::is_same_v<U, double>)
    return DType::kF64;
  else if constexpr (std::is_same_v<U, float>)
    return DType::kF32;
  else if constexpr (std::is_same_v<U, bf16>)
    return DType::kBF16;
  else if constexpr (std::is_same_v<U, fp16>)
    return DType::kF16;
  else if constexpr (std::is_same_v<U, int64_t>)
    return DType::kI64;
  else if constexpr (std::is_same_v<U, int32_t>)
    return DType::kI32;
  else if constexpr (std::is_same_v<U, uint32_t>)
    return DType::kU32;
  else {
    static_assert(std::is_same_v<U, uint8_t>, "safetensors has no such element type here");
    return DType::kU8;
  }
}

// A tensor as the header describes it.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t begin = 0;  // offset of its first byte in the file; set by the layout or read from the header

  int64_t count() const;
  int64_t bytes() const { return count() * dtype_bytes(dtype); }
};

std::string shape_text(std::span<const int64_t> shape);  // "(3, 4)"

using SafetensorsMetadata = std::map<std::string, std::string>;

// Creates the file, header written and full size claimed; contents of the tensors are zeros until written.
void create_safetensors(const std::string& path, std::vector<TensorInfo> tensors, const SafetensorsMetadata& metadata);

// A file to read, mapped. Whatever the bytes are, the constructor either accepts a header whose tensors all lie inside
// the file, neither overlapping nor leaving gaps, or throws UserError in one line with the file's name.
class Safetensors {
 public:
  explicit Safetensors(const std::string& path);

  const std::string& path() const { return path_; }
  const SafetensorsMetadata& metadata() const { return metadata_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // in the order of their bytes
  const TensorInfo* find(std::string_view name) const;                 // null if absent
  const TensorInfo& at(std::string_view name) const;                   // UserError if absent
  std::span<const std::byte> bytes(const TensorInfo& tensor) const;

  // The elements of a tensor of this very type; UserError if it is absent or of another.
  template <class T>
  std::span<const T> values(std::string_view name) const {
    const TensorInfo& tensor = at(name);
    require(tensor, dtype_of<T>());
    return {reinterpret_cast<const T*>(bytes(tensor).data()), static_cast<size_t>(tensor.count())};
  }

 private:
  void require(const TensorInfo& tensor, DType dtype) const;

  std::string path_;
  MappedFile file_;
  SafetensorsMetadata metadata_;
  std::vector<TensorInfo> tensors_;
};

// Writes ranges of the tensors of a file that create_safetensors made. Ranks may write disjoint ranges at the same
// time.
class SafetensorsWriter {
 public:
  explicit SafetensorsWriter(const std::string& path);
  // Bytes [offset, offset + bytes.size()) of the tensor.
  void write(std::string_view name, std::span<const std::byte> bytes, int64_t offset = 0);
  void sync() { file_.sync(); }

 private:
  Safetensors layout_;
  File file_;
};

}  // namespace pkmesh
