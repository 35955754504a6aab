// SPDX-License-Identifier: Apache-2.0
// The contract of a Communicator, as one suite for all kinds: a test program defines contract_worlds(), and every
// TEST_P on ContractTest runs in each of them. Inputs are small integers, so sums are exact in any order and results
// are compared bit for bit.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace pkmesh {

using RankBody = std::function<void(Communicator& world)>;

struct ContractWorld {
  std::string name;
  std::function<void(const RankBody& body)> run;  // runs the body on every rank
  bool needs_gpu = false;
  friend void PrintTo(const ContractWorld& world, std::ostream* out) { *out << world.name; }
};

// Defined by each test program.
std::vector<ContractWorld> contract_worlds();

class ContractTest : public testing::TestWithParam<ContractWorld> {
 protected:
  void SetUp() override {
    if (!GetParam().needs_gpu || device_count(DeviceKind::kCuda) > 0) return;
    const char* required = std::getenv("PKMESH_REQUIRE_GPU");
    if (required != nullptr && std::string(required) == "1") FAIL() << "PKMESH_REQUIRE_GPU=1, but no CUDA device";
    GTEST_SKIP() << "no CUDA device: this was not run";
  }
  // In the body, use EXPECT only: a rank that returns early leaves the others waiting.
  void on_ranks(const RankBody& body) const { GetParam().run(body); }
};

// What is in none of the shares is no sum.
inline void spoil_but(std::span<const Share> kept, std::span<float> data) {
  const std::vector<float> all(data.begin(), data.end());
  std::ranges::fill(data, -1e9F);
  for (const Share& share : kept) std::ranges::copy(share.of(std::span(all)), share.of(data).begin());
}

// The number that `rank` has at `index`: whole, in [-50, 50].
template <class T>
T whole(int rank, int64_t index) {
  return static_cast<T>((rank * 31 + index * 7) % 101 - 50);
}

// What it has of so many.
template <class T>
std::vector<T> numbers(int rank, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = whole<T>(rank, i);
  return values;
}

// What becomes of them.
template <class T>
std::vector<T> expected_reduction(int ranks, int64_t count, Reduction reduction) {
  std::vector<T> result = numbers<T>(0, count);
  for (int r = 1; r < ranks; ++r)
    for (int64_t i = 0; i < count; ++i) {
      T& x = result[static_cast<size_t>(i)];
      const T y = whole<T>(r, i);
      x = reduction == Reduction::kSum ? x + y : reduction == Reduction::kMax ? std::max(x, y) : std::min(x, y);
    }
  return result;
}

}  // namespace pkmesh
