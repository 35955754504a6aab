// SPDX-License-Identifier: Apache-2.0
// For _cpu.cpp files: the one order in which a short run of squares is added.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace pkmesh {

// Sum of x^2 in double. Eight running sums, so that it vectorises; their order is part of the result.
inline double run_of_squares(const float* data, int64_t count) {
  constexpr int64_t kLanes = 8;
  std::array<double, kLanes> lanes{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const auto x = static_cast<double>(data[i + lane]);
      lanes[static_cast<size_t>(lane)] += x * x;
    }
  }
  double total = 0;
  for (; i < count; ++i) total += static_cast<double>(data[i]) * static_cast<double>(data[i]);
  for (const double lane : lanes) total += lane;
  return total;
}

}  // namespace pkmesh
