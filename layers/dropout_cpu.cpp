// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "layers/dropout.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kGrain = 4096;  // elements worth a thread
constexpr int64_t kStrip = 512;   // elements whose random numbers wait in L1

}  // namespace

void dropout_factors(const Dropout& mask, int64_t first, int64_t count, float* factors) {
  const uint32_t threshold = mask.threshold();
  const float keep = mask.scale();
  uint32_t bits[kStrip];
  for (int64_t done = 0; done < count; done += kStrip) {
    const int64_t strip = std::min(kStrip, count - done);
    mask.random.fill_bits(static_cast<uint64_t>(mask.first_index + first + done), strip, bits);
#pragma omp simd
    for (int64_t j = 0; j < strip; ++j) factors[done + j] = bits[j] < threshold ? 0.0F : keep;
  }
}

void dropout(Stream&, Matrix<const float> x, const Dropout& mask, Matrix<float> y) {
  const float* in = x.data();
  float* out = y.data();
  if (mask.probability == 0.0F) {
    if (in != out)
      parallel_for(0, x.count(), kGrain, [=](int64_t from, int64_t to) { std::copy(in + from, in + to, out + from); });
    return;
  }
  parallel_for(0, x.count(), kGrain, [=, &mask](int64_t from, int64_t to) {
    float factors[kStrip];
    for (int64_t first = from; first < to; first += kStrip) {
      const int64_t count = std::min(kStrip, to - first);
      dropout_factors(mask, first, count, factors);
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) out[first + j] = in[first + j] * factors[j];
    }
  });
}

}  // namespace pkmesh::PKM_CPU
