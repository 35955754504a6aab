// SPDX-License-Identifier: Apache-2.0
// For _cuda.cu files only: a dropout mask as kernels draw it; element by element the one of the CPU.
#pragma once

#include "layers/dropout.h"

namespace pkmesh::cuda {

struct DropoutMask {
  explicit DropoutMask(const Dropout& mask)
      : random(mask.random), threshold(mask.threshold()), keep(mask.scale()), first_index(mask.first_index) {}

  __device__ float factor_of(uint32_t bits) const { return bits < threshold ? 0.0F : keep; }

  // 0 or 1 / (1 - p) for element i of the view.
  __device__ float factor(int64_t i) const {
    const auto index = static_cast<uint64_t>(first_index + i);
    const auto four = random.block(index / 4);
    const uint32_t low = (index & 1) == 0 ? four[0] : four[1];  // no indexing: the numbers stay in registers
    const uint32_t high = (index & 1) == 0 ? four[2] : four[3];
    return factor_of((index & 2) == 0 ? low : high);
  }

  Random random;
  uint32_t threshold;
  float keep;
  int64_t first_index;
};

}  // namespace pkmesh::cuda
