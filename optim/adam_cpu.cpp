// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "optim/adam.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {

// 16 bytes read and 12 written per element: bound by memory, so the loop only has to vectorise.
void adam_update(Stream&, const AdamCoefficients& coefficients, Vector<float> values, Vector<const float> gradients,
                 Vector<float> first_moments, Vector<float> second_moments) {
  parallel_for(0, values.count(), 16384, [&](int64_t begin, int64_t end) {
    const AdamCoefficients c = coefficients;
    float* const value = values.data();
    const float* const gradient = gradients.data();
    float* const first = first_moments.data();
    float* const second = second_moments.data();
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float g = c.scale * gradient[i];
      const float m = first[i] + (g - first[i]) * c.one_minus_beta1;
      const float v = c.beta2 * second[i] + c.one_minus_beta2 * g * g;
      first[i] = m;
      second[i] = v;
      value[i] = c.keep * value[i] - c.rate * m / (std::sqrt(v) + c.eps);
    }
  });
}

}  // namespace pkmesh::PKM_CPU
