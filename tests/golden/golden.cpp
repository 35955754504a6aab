// SPDX-License-Identifier: Apache-2.0
#include "tests/golden/golden.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace pkmesh::golden {
namespace {

template <class T>
std::vector<T> elements(std::span<const char> bytes) {
  std::vector<T> result(bytes.size() / sizeof(T));
  std::memcpy(result.data(), bytes.data(), result.size() * sizeof(T));
  return result;
}

}  // namespace

File::File(const std::string& name) : name_(name) {
  std::ifstream file(std::string(PKMESH_GOLDEN_FOLDER) + "/" + name + ".safetensors", std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  uint64_t header_size = 0;
  if (bytes.size() < sizeof(header_size)) throw std::runtime_error("golden file " + name + ": cannot be read");
  std::memcpy(&header_size, bytes.data(), sizeof(header_size));
  const auto all = std::span(bytes).subspan(sizeof(header_size));
  const auto header = all.first(header_size);
  const auto data = all.subspan(header_size);
  const auto json = nlohmann::json::parse(header.begin(), header.end());
  for (const auto& [key, entry] : json.items()) {
    const auto begin = entry.at("data_offsets").at(0).get<size_t>();
    const auto end = entry.at("data_offsets").at(1).get<size_t>();
    Tensor tensor{entry.at("dtype"), entry.at("shape"), {}, {}};
    const auto raw = data.subspan(begin, end - begin);
    if (tensor.type == "F32") tensor.floats = elements<float>(raw);
    if (tensor.type == "I64") tensor.integers = elements<int64_t>(raw);
    tensors_.emplace(key, std::move(tensor));
  }
}

const File::Tensor& File::find(const std::string& tensor) const {
  const auto found = tensors_.find(tensor);
  if (found == tensors_.end()) throw std::runtime_error("golden file " + name_ + " has no tensor " + tensor);
  return found->second;
}

std::span<const float> File::floats(const std::string& tensor) const {
  const Tensor& found = find(tensor);
  if (found.type != "F32") throw std::runtime_error(name_ + ": " + tensor + " is " + found.type + ", not F32");
  return found.floats;
}

std::span<const int64_t> File::integers(const std::string& tensor) const {
  const Tensor& found = find(tensor);
  if (found.type != "I64") throw std::runtime_error(name_ + ": " + tensor + " is " + found.type + ", not I64");
  return found.integers;
}

float File::scalar(const std::string& tensor) const {
  const auto values = floats(tensor);
  if (values.size() != 1) throw std::runtime_error(name_ + ": " + tensor + " is not a scalar");
  return values[0];
}

int64_t File::integer(const std::string& tensor) const {
  const auto values = integers(tensor);
  if (values.size() != 1) throw std::runtime_error(name_ + ": " + tensor + " is not a scalar");
  return values[0];
}

const std::vector<int64_t>& File::shape(const std::string& tensor) const {
  return find(tensor).shape;
}

std::vector<std::string> File::names() const {
  std::vector<std::string> result;
  for (const auto& [name, tensor] : tensors_) result.push_back(name);
  return result;
}

void expect_close(const std::string& what, std::span<const float> actual, std::span<const float> expected,
                  double tolerance, double floor) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double largest = floor;
  for (const float x : expected) largest = std::max(largest, std::abs(static_cast<double>(x)));
  double worst = 0;
  size_t where = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double difference = std::abs(static_cast<double>(actual[i]) - static_cast<double>(expected[i]));
    if (difference <= worst) continue;  // not so for a NaN,
    worst = difference;
    where = i;
    if (std::isnan(worst)) break;  // which fails below
  }
  EXPECT_TRUE(worst <= tolerance * largest) << what << ": element " << where << " is " << actual[where] << ", expected "
                                            << expected[where] << " (largest " << largest << ")";
}

}  // namespace pkmesh::golden
