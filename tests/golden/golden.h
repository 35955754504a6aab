// SPDX-License-Identifier: Apache-2.0
// Reads the golden files that make_golden.py wrote (safetensors; F32 and I64) and holds results against them.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace pkmesh::golden {

class File {
 public:
  // tests/golden/<name>.safetensors. Throws std::runtime_error if it cannot be read.
  explicit File(const std::string& name);

  // Throw std::runtime_error if there is no such tensor, or if it has another type.
  std::span<const float> floats(const std::string& tensor) const;
  std::span<const int64_t> integers(const std::string& tensor) const;
  float scalar(const std::string& tensor) const;     // of a tensor with one float
  int64_t integer(const std::string& tensor) const;  // of a tensor with one integer
  const std::vector<int64_t>& shape(const std::string& tensor) const;
  bool has(const std::string& tensor) const { return tensors_.contains(tensor); }
  std::vector<std::string> names() const;

 private:
  struct Tensor {
    std::string type;
    std::vector<int64_t> shape;
    std::vector<float> floats;
    std::vector<int64_t> integers;
  };
  const Tensor& find(const std::string& tensor) const;

  std::string name_;
  std::map<std::string, Tensor> tensors_;
};

// Expects equal sizes and |actual - expected| <= tolerance * (the largest |expected|, or `floor` if that is less: for
// tensors that are nothing but rounding, such as the gradient of a bias in front of a BatchNorm).
void expect_close(const std::string& what, std::span<const float> actual, std::span<const float> expected,
                  double tolerance, double floor = 1e-6);

}  // namespace pkmesh::golden
