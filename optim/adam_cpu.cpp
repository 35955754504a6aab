// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "optim/adam.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {

namespace {

// 16 bytes read and 12 written per element: bound by memory, so the loop only has to vectorise.
void update(const AdamCoefficients& coefficients, float keep, int64_t begin, int64_t end, float* value,
            const float* gradient, float* first, float* second) {
  const AdamCoefficients c = coefficients;
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const float g = c.scale * gradient[i];
    const float m = first[i] + (g - first[i]) * c.one_minus_beta1;
    const float v = c.beta2 * second[i] + c.one_minus_beta2 * g * g;
    first[i] = m;
    second[i] = v;
    value[i] = keep * value[i] - c.rate * m / (std::sqrt(v) + c.eps);
  }
}

}  // namespace

void adam_update(Stream&, const AdamCoefficients& coefficients, Vector<const int64_t> decayed, Vector<float> values,
                 Vector<const float> gradients, Vector<float> first_moments, Vector<float> second_moments) {
  parallel_for(0, values.count(), 16384, [&](int64_t begin, int64_t end) {
    // Bounds that lie behind `begin` cut the piece; between an even number of them and the next, nothing decays.
    const int64_t* bound = std::upper_bound(decayed.begin(), decayed.end(), begin);
    while (begin < end) {
      const int64_t cut = bound == decayed.end() ? end : std::min(end, *bound);
      const float keep = (bound - decayed.begin()) % 2 == 0 ? 1.0F : coefficients.keep;
      update(coefficients, keep, begin, cut, values.data(), gradients.data(), first_moments.data(),
             second_moments.data());
      begin = cut;
      ++bound;
    }
  });
}

}  // namespace pkmesh::PKM_CPU
