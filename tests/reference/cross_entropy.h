// SPDX-License-Identifier: Apache-2.0
// Judge of the tied output layer and its loss, in double.
#pragma once

#include "tests/reference/dense.h"

namespace pkmesh::reference {

// Losses per token. x (T, width), embedding (V, width).
inline Numbers cross_entropy(const Numbers& x, const Numbers& embedding, const std::vector<int32_t>& targets,
                             size_t width) {
  const size_t vocabulary = embedding.size() / width;
  const Numbers logits = product(x, false, embedding, true, targets.size(), vocabulary, width);
  Numbers losses;
  for (size_t t = 0; t < targets.size(); ++t) {
    const double* row = logits.data() + t * vocabulary;
    const double top = *std::max_element(row, row + vocabulary);
    double sum = 0;
    for (size_t v = 0; v < vocabulary; ++v) sum += std::exp(row[v] - top);
    losses.push_back(top + std::log(sum) - row[targets[t]]);
  }
  return losses;
}

}  // namespace pkmesh::reference
