// SPDX-License-Identifier: Apache-2.0
// Product-key selection the slow way: every one of the n * n slots is scored and sorted.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "runtime/view.h"

namespace pkmesh::reference {

// Scores of all n * n slots for one token and head.
inline std::vector<double> slot_scores(View<const double, 3> queries, View<const double, 4> keys, int64_t token,
                                       int64_t head) {
  const int64_t n = keys.size(2);
  const int64_t width = keys.size(3);
  std::vector<double> half_scores(static_cast<size_t>(2 * n));
  for (int64_t half = 0; half < 2; ++half)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < width; ++j)
        half_scores[half * n + i] += queries(token, head, half * width + j) * keys(head, half, i, j);
  std::vector<double> scores(static_cast<size_t>(n * n));
  for (int64_t slot = 0; slot < n * n; ++slot) scores[slot] = half_scores[slot / n] + half_scores[n + slot % n];
  return scores;
}

// The k best slots, ties by the lower slot.
inline std::vector<int32_t> best_slots(const std::vector<double>& scores, int64_t k) {
  std::vector<int32_t> slots(scores.size());
  std::iota(slots.begin(), slots.end(), 0);
  std::stable_sort(slots.begin(), slots.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  slots.resize(static_cast<size_t>(k));
  return slots;
}

// Weights of slots that are given: softmax per head of their scores. slots and weights (T, H*k).
inline void select_weights(View<const double, 3> queries, View<const double, 4> keys, Matrix<const int32_t> slots,
                           Matrix<double> weights) {
  const int64_t heads = queries.size(1);
  const int64_t k = slots.size(1) / heads;
  for (int64_t token = 0; token < queries.size(0); ++token)
    for (int64_t head = 0; head < heads; ++head) {
      const auto scores = slot_scores(queries, keys, token, head);
      double largest = -INFINITY;
      for (int64_t i = 0; i < k; ++i) largest = std::max(largest, scores[slots(token, head * k + i)]);
      double sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += std::exp(scores[slots(token, head * k + i)] - largest);
      for (int64_t i = 0; i < k; ++i)
        weights(token, head * k + i) = std::exp(scores[slots(token, head * k + i)] - largest) / sum;
    }
}

// Gradients (=) of sum(weights * dweights) for slots that are given.
inline void select_backward(View<const double, 3> queries, View<const double, 4> keys, Matrix<const int32_t> slots,
                            Matrix<const double> dweights, View<double, 3> dqueries, View<double, 4> dkeys) {
  const int64_t heads = queries.size(1);
  const int64_t k = slots.size(1) / heads;
  const int64_t n = keys.size(2);
  const int64_t width = keys.size(3);
  std::vector<double> memory(static_cast<size_t>(slots.count()));
  const Matrix<double> weights(memory.data(), slots.size(0), slots.size(1));
  select_weights(queries, keys, slots, weights);
  std::fill(dqueries.begin(), dqueries.end(), 0.0);
  std::fill(dkeys.begin(), dkeys.end(), 0.0);
  for (int64_t token = 0; token < queries.size(0); ++token)
    for (int64_t head = 0; head < heads; ++head) {
      double mean = 0;
      for (int64_t i = head * k; i < head * k + k; ++i) mean += weights(token, i) * dweights(token, i);
      for (int64_t i = head * k; i < head * k + k; ++i) {
        const double dscore = weights(token, i) * (dweights(token, i) - mean);
        for (int64_t half = 0; half < 2; ++half) {
          const int64_t sub_key = half == 0 ? slots(token, i) / n : slots(token, i) % n;
          for (int64_t j = 0; j < width; ++j) {
            dqueries(token, head, half * width + j) += dscore * keys(head, half, sub_key, j);
            dkeys(head, half, sub_key, j) += dscore * queries(token, head, half * width + j);
          }
        }
      }
    }
}

}  // namespace pkmesh::reference
