// SPDX-License-Identifier: Apache-2.0
#include "layers/dropout_cuda.h"
#include "runtime/cuda_kernel.h"

namespace pkmesh::cuda {
namespace {

// A thread does the elements of one block of four random numbers; i counts those blocks from the view's first one,
// which may begin before the view.
struct Drop {
  DropoutMask mask;
  int64_t count;
  const float* x;
  float* y;
  __device__ void operator()(int64_t i) const {
    const int64_t block = mask.first_index / 4 + i;
    const auto bits = mask.random.block(static_cast<uint64_t>(block));
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      const int64_t element = 4 * block + lane - mask.first_index;
      if (element >= 0 && element < count) y[element] = x[element] * mask.factor_of(bits[lane]);
    }
  }
};

}  // namespace

void dropout(Stream& stream, Matrix<const float> x, const Dropout& mask, Matrix<float> y) {
  if (x.empty()) return;
  if (mask.probability == 0.0F) {
    if (x.data() != y.data()) copy(stream, x.flat(), y.flat());
    return;
  }
  const int64_t blocks = (mask.first_index + x.count() - 1) / 4 - mask.first_index / 4 + 1;
  for_each(stream, blocks, Drop{DropoutMask(mask), x.count(), x.data(), y.data()});
}

}  // namespace pkmesh::cuda
