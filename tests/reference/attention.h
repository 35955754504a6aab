// SPDX-License-Identifier: Apache-2.0
// Judge of causal attention, with the whole matrix of weights, in double.
#pragma once

#include "layers/dropout.h"
#include "tests/reference/numbers.h"

namespace pkmesh::reference {

struct Attention {
  Numbers output;     // (T, d)
  Numbers logsumexp;  // (heads, T)
};

// What element `index` of a mask is multiplied by.
inline double keep_factor(const Dropout& mask, int64_t index) {
  const double drawn = mask.random.bits(static_cast<uint64_t>(mask.first_index + index)) * 0x1p-32;
  return drawn < mask.probability ? 0.0 : 1.0 / (1.0 - mask.probability);
}

// qkv (sequences * context, 3 * width).
inline Attention attention(const Numbers& qkv, int64_t sequences, int64_t context, int64_t heads, int64_t width,
                           const Dropout& mask = {}) {
  const int64_t head_width = width / heads;
  Attention result{Numbers(sequences * context * width), Numbers(heads * sequences * context)};
  const auto part = [&](int64_t which, int64_t token, int64_t head, int64_t j) {
    return qkv[token * 3 * width + which * width + head * head_width + j];
  };
  for (int64_t s = 0; s < sequences; ++s)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t q = 0; q < context; ++q) {
        const int64_t token = s * context + q;
        Numbers weights(q + 1);
        double sum = 0;
        for (int64_t k = 0; k <= q; ++k) {
          double score = 0;
          for (int64_t j = 0; j < head_width; ++j) score += part(0, token, h, j) * part(1, s * context + k, h, j);
          weights[k] = std::exp(score / std::sqrt(static_cast<double>(head_width)));
          sum += weights[k];
        }
        result.logsumexp[h * sequences * context + token] = std::log(sum);
        for (int64_t k = 0; k <= q; ++k) {
          const int64_t index = ((s * heads + h) * context + q) * context + k;
          const double weight = weights[k] / sum * (mask.probability > 0 ? keep_factor(mask, index) : 1.0);
          for (int64_t j = 0; j < head_width; ++j)
            result.output[token * width + h * head_width + j] += weight * part(2, s * context + k, h, j);
        }
      }
  return result;
}

}  // namespace pkmesh::reference
