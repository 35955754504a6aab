// SPDX-License-Identifier: Apache-2.0
#include "layers/dropout_cuda.h"
#include "runtime/cuda_kernel.h"

namespace pkmesh::cuda {
namespace {

// y = residual + dropout(x), or dropout(x) if residual is null. A thread does the elements of one block of four random
// numbers; i counts those blocks from the view's first one, which may begin before the view.
struct Drop {
  DropoutMask mask;
  int64_t count;
  const float* x;
  const float* residual;
  float* y;
  __device__ void operator()(int64_t i) const {
    const int64_t block = mask.first_index / 4 + i;
    const auto bits = mask.random.block(static_cast<uint64_t>(block));
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      const int64_t element = 4 * block + lane - mask.first_index;
      if (element < 0 || element >= count) continue;
      const float kept = x[element] * mask.factor_of(bits[lane]);
      y[element] = residual == nullptr ? kept : residual[element] + kept;
    }
  }
};

void drop(Stream& stream, Matrix<const float> x, const Dropout& mask, const float* residual, Matrix<float> y) {
  if (x.empty()) return;
  const int64_t blocks = (mask.first_index + x.count() - 1) / 4 - mask.first_index / 4 + 1;
  for_each(stream, blocks, Drop{DropoutMask(mask), x.count(), x.data(), residual, y.data()});
}

struct AddResidual {
  const float* x;
  const float* residual;
  float* y;
  __device__ void operator()(int64_t i) const { y[i] = residual[i] + x[i]; }
};

}  // namespace

void dropout(Stream& stream, Matrix<const float> x, const Dropout& mask, Matrix<float> y) {
  if (mask.probability > 0.0F) return drop(stream, x, mask, nullptr, y);
  if (x.data() != y.data()) copy(stream, x.flat(), y.flat());
}

void dropout_add(Stream& stream, Matrix<const float> x, const Dropout& mask, Matrix<const float> residual,
                 Matrix<float> y) {
  if (mask.probability > 0.0F) return drop(stream, x, mask, residual.data(), y);
  for_each(stream, x.count(), AddResidual{x.data(), residual.data(), y.data()});
}

}  // namespace pkmesh::cuda
