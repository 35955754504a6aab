// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "layers/gemm.h"
#include "layers/gemm_onednn.h"
#include "layers/linear.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kStrip = 128;       // columns summed at a time: their totals stay in registers and L1
constexpr int64_t kRowsInFloat = 32;  // rows summed in float before the sum goes into a double

// sums[j] += matrix[0][j] + matrix[1][j] + ...; every column in the order of its rows.
void add_column_sums(Matrix<const float> matrix, Vector<float> sums) {
  const int64_t width = matrix.size(1);
  const int64_t strips = (width + kStrip - 1) / kStrip;
  parallel_for(0, strips, std::max<int64_t>(1, 65536 / (kStrip * (matrix.size(0) + 1))), [&](int64_t from, int64_t to) {
    for (int64_t strip = from; strip < to; ++strip) {
      const int64_t first = strip * kStrip;
      const int64_t count = std::min(kStrip, width - first);
      double total[kStrip] = {};
      for (int64_t row = 0; row < matrix.size(0); row += kRowsInFloat) {
        float partial[kStrip] = {};
        for (int64_t r = row; r < std::min(row + kRowsInFloat, matrix.size(0)); ++r) {
          const float* values = matrix.data() + r * width + first;
          for (int64_t j = 0; j < count; ++j) partial[j] += values[j];
        }
        for (int64_t j = 0; j < count; ++j) total[j] += partial[j];
      }
      for (int64_t j = 0; j < count; ++j) sums[first + j] = static_cast<float>(sums[first + j] + total[j]);
    }
  });
}

}  // namespace

void linear_forward(Stream& stream, Matrix<const float> x, Matrix<const float> weight, Vector<const float> bias,
                    Matrix<float> y) {
  if (OneDnnProducts::suits(stream.math(), x.size(1), y))
    return OneDnnProducts::of(stream).multiply(stream.math(), Transpose::kNo, Transpose::kYes, x, weight, bias,
                                               /*accumulate=*/false, y);
  // The bias goes in first: BLAS reads and writes y anyway, so adding it costs one pass less.
  if (!bias.empty())
    parallel_for(0, y.size(0), 1 + 16384 / bias.count(), [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) std::copy(bias.begin(), bias.end(), y[t].begin());
    });
  PKM_CPU::gemm(stream, Transpose::kNo, Transpose::kYes, 1.0F, x, weight, bias.empty() ? 0.0F : 1.0F, y);
}

void linear_backward(Stream& stream, Matrix<const float> x, Matrix<const float> weight, Matrix<const float> dy,
                     Matrix<float> dx, Matrix<float> dweight, Vector<float> dbias) {
  if (!dx.empty()) PKM_CPU::gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, dy, weight, 0.0F, dx);
  if (!dweight.empty()) PKM_CPU::gemm(stream, Transpose::kYes, Transpose::kNo, 1.0F, dy, x, 1.0F, dweight);
  if (!dbias.empty()) add_column_sums(dy, dbias);
}

}  // namespace pkmesh::PKM_CPU
