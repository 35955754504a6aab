// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "layers/gemm_cpu.h"
#include "layers/linear.h"
#include "runtime/between_ops.h"
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
  PKM_CPU::gemm_with_bias(stream, Transpose::kNo, Transpose::kYes, x, weight, bias, y);
}

void linear_backward(Stream& stream, Matrix<const float> x, Matrix<const float> weight, Matrix<const float> dy,
                     Matrix<float> dx, Matrix<float> dweight, Vector<float> dbias) {
  if (!dx.empty()) PKM_CPU::gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, dy, weight, 0.0F, dx);
  end_op();  // a long one: messages under way have a turn
  if (!dweight.empty()) PKM_CPU::gemm(stream, Transpose::kYes, Transpose::kNo, 1.0F, dy, x, 1.0F, dweight);
  if (!dbias.empty()) add_column_sums(dy, dbias);
}

}  // namespace pkmesh::PKM_CPU
