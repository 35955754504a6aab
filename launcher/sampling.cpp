// SPDX-License-Identifier: Apache-2.0
#include "launcher/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "runtime/check.h"

namespace pkmesh {

int32_t draw_token(std::span<const float> logits, double temperature, double top_p, double uniform) {
  PKM_CHECK(!logits.empty(), "no logits to draw from");
  const auto likeliest = std::ranges::max_element(logits);
  if (temperature == 0) return static_cast<int32_t>(likeliest - logits.begin());

  std::vector<double> weights(logits.size());
  std::ranges::transform(logits, weights.begin(), [&](float logit) {
    return std::exp((static_cast<double>(logit) - *likeliest) / temperature);
  });
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });

  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  size_t kept = 0;
  double mass = 0;
  while (kept < order.size() && (kept == 0 || mass < top_p * total)) mass += weights[order[kept++]];

  double left = uniform * mass;
  for (size_t i = 0; i < kept; ++i) {
    left -= weights[order[i]];
    if (left < 0) return order[i];
  }
  return order[kept - 1];  // rounding left a crumb
}

}  // namespace pkmesh
