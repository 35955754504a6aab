// SPDX-License-Identifier: Apache-2.0
#include "optim/clipping.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "runtime/check.h"

namespace pkmesh {

double clip_factor(double norm, double max_norm) {
  PKM_CHECK(std::isfinite(norm) && norm >= 0, "norm {}", norm);
  if (max_norm == 0) return 1.0;
  return std::min(1.0, max_norm / (norm + 1e-6));
}

Gate decide(Communicator& world, const GateShare& share) {
  const std::array<double, 4> figures = {share.dense_squares, share.values_squares, share.loss_sum, share.tokens};
  std::array<double, 7> sums{};
  for (size_t i = 0; i < figures.size(); ++i) {
    if (std::isfinite(figures[i])) {
      sums[i] = figures[i];
    } else {
      sums[std::min<size_t>(4 + i, 6)] += 1;
    }
  }
  world.all_reduce(std::span<double>(sums), Reduction::kSum, Purpose::kGate);
  return {.dense_squares = sums[0],
          .values_squares = sums[1],
          .loss_sum = sums[2],
          .tokens = sums[3],
          .bad_dense = static_cast<int64_t>(sums[4]),
          .bad_values = static_cast<int64_t>(sums[5]),
          .bad_loss = static_cast<int64_t>(sums[6])};
}

}  // namespace pkmesh
