// SPDX-License-Identifier: Apache-2.0
#include "layers/column_sums_cuda.h"
#include "layers/gemm_cuda.h"
#include "layers/linear.h"
#include "runtime/cuda_scratch.h"

namespace pkmesh::cuda {
namespace {

constexpr int kThreads = 256;

// One block per row: y[t] = bias.
__global__ void copy_bias_kernel(const float* __restrict__ bias, int64_t width, float* __restrict__ y) {
  float* row = y + blockIdx.x * width;
  for (int64_t j = threadIdx.x; j < width; j += kThreads) row[j] = bias[j];
}

struct Element {
  const float* matrix;
  int64_t width;
  __device__ void operator()(int64_t row, int64_t column, double (&sums)[1]) const {
    sums[0] += matrix[row * width + column];
  }
};

// dx and dweight from operands that are rounded once.
void narrow_backward(Stream& stream, Matrix<const float> x, Matrix<const float> weight, Matrix<const float> dy,
                     Matrix<float> dx, Matrix<float> dweight) {
  const Math math = stream.math();
  ScratchPlan plan;
  const auto dy_memory = plan.add<std::byte>(narrow_bytes(dy.size(0), dy.size(1)));
  const auto x_memory = plan.add<std::byte>(dweight.empty() ? 0 : narrow_bytes(x.size(0), x.size(1)));
  const auto weight_memory = plan.add<std::byte>(dx.empty() ? 0 : narrow_bytes(weight.size(0), weight.size(1)));
  std::byte* const memory = plan.take(stream);
  const Narrow narrow_dy = narrow(stream, math, dy, dy_memory.in(memory));
  if (!dx.empty())
    multiply(stream, math, Transpose::kNo, Transpose::kNo, narrow_dy,
             narrow(stream, math, weight, weight_memory.in(memory)), 1.0F, 0.0F, dx);
  if (!dweight.empty())
    multiply(stream, math, Transpose::kYes, Transpose::kNo, narrow_dy, narrow(stream, math, x, x_memory.in(memory)),
             1.0F, 1.0F, dweight);
}

}  // namespace

void linear_forward(Stream& stream, Matrix<const float> x, Matrix<const float> weight, Vector<const float> bias,
                    Matrix<float> y) {
  // The bias goes in first, and cuBLAS adds to it.
  if (!bias.empty() && !y.empty()) {
    copy_bias_kernel<<<static_cast<unsigned>(y.size(0)), kThreads, 0, native(stream)>>>(bias.data(), y.size(1),
                                                                                        y.data());
    PKM_CUDA(cudaGetLastError());
  }
  cuda::gemm(stream, Transpose::kNo, Transpose::kYes, 1.0F, x, weight, bias.empty() ? 0.0F : 1.0F, y);
}

void linear_backward(Stream& stream, Matrix<const float> x, Matrix<const float> weight, Matrix<const float> dy,
                     Matrix<float> dx, Matrix<float> dweight, Vector<float> dbias) {
  if (stream.math() != Math::kFp32) {
    narrow_backward(stream, x, weight, dy, dx, dweight);
  } else {
    if (!dx.empty()) cuda::gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, dy, weight, 0.0F, dx);
    if (!dweight.empty()) cuda::gemm(stream, Transpose::kYes, Transpose::kNo, 1.0F, dy, x, 1.0F, dweight);
  }
  if (!dbias.empty())
    add_column_sums(stream, dy.size(0), dy.size(1), Element{dy.data(), dy.size(1)}, ColumnSums<1>{{dbias.data()}});
}

}  // namespace pkmesh::cuda
