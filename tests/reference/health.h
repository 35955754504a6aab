// SPDX-License-Identifier: Apache-2.0
// Judge of memory health: the definitions as written, over the whole table in one place.
#pragma once

#include "tests/reference/numbers.h"

namespace pkmesh::reference {

inline double sum(const Numbers& x) {
  return std::accumulate(x.begin(), x.end(), 0.0);
}

inline double kl_to_uniform(const Numbers& x) {
  double kl = std::log(static_cast<double>(x.size()));
  for (const double value : x)
    if (value > 0) kl += value / sum(x) * std::log(value / sum(x));
  return kl;
}

// By its definition over all pairs.
inline double gini(const Numbers& x) {
  double difference = 0;
  for (const double a : x)
    for (const double b : x) difference += std::abs(a - b);
  return difference / (2 * static_cast<double>(x.size()) * sum(x));
}

// The fewest slots that together hold this share.
inline int64_t slots_that_hold(double share, Numbers x) {
  std::sort(x.begin(), x.end(), std::greater<>());
  const double target = share * sum(x) * (1 - 1e-12);
  double held = 0;
  int64_t slots = 0;
  while (held < target) held += x[static_cast<size_t>(slots++)];
  return slots;
}

}  // namespace pkmesh::reference
