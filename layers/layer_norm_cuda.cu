// SPDX-License-Identifier: Apache-2.0
// One block per row. A thread reads and writes the same columns in every pass over the row, which is why outputs may
// lie where inputs do.
#include "layers/column_sums_cuda.h"
#include "layers/layer_norm.h"

namespace pkmesh::cuda {
namespace {

constexpr int kThreads = 128;

// y = normalised row, and its moments. `row` may be y.
__device__ void normalise(const float* row, const float* gamma, const float* beta, float epsilon, int64_t width,
                          float* y, float* mean_out, float* rstd_out) {
  float sum = 0.0F;
  for (int64_t j = threadIdx.x; j < width; j += kThreads) sum += row[j];
  const float mean = block_sum<kThreads>(sum) / static_cast<float>(width);
  float squares = 0.0F;  // about the mean: no cancellation
  for (int64_t j = threadIdx.x; j < width; j += kThreads) squares += (row[j] - mean) * (row[j] - mean);
  const float variance = block_sum<kThreads>(squares) / static_cast<float>(width);
  const float rstd = 1.0F / sqrtf(variance + epsilon);
  for (int64_t j = threadIdx.x; j < width; j += kThreads) y[j] = (row[j] - mean) * rstd * gamma[j] + beta[j];
  if (threadIdx.x == 0) {
    *mean_out = mean;
    *rstd_out = rstd;
  }
}

__global__ void forward_kernel(const float* x, const float* gamma, const float* beta, float epsilon, int64_t width,
                               float* y, float* mean, float* rstd) {
  const int64_t t = blockIdx.x;
  normalise(x + t * width, gamma, beta, epsilon, width, y + t * width, mean + t, rstd + t);
}

__global__ void residual_forward_kernel(const float* a, const float* b, const float* gamma, const float* beta,
                                        float epsilon, int64_t width, float* sum, float* y, float* mean, float* rstd) {
  const int64_t t = blockIdx.x;
  const int64_t first = t * width;
  for (int64_t j = threadIdx.x; j < width; j += kThreads) sum[first + j] = a[first + j] + b[first + j];
  normalise(sum + first, gamma, beta, epsilon, width, y + first, mean + t, rstd + t);
}

// dskip may be null.
__global__ void backward_kernel(const float* x, const float* gamma, const float* means, const float* rstds,
                                const float* dy, const float* dskip, int64_t width, float* dx) {
  const int64_t t = blockIdx.x;
  const int64_t first = t * width;
  const float mean = means[t];
  const float rstd = rstds[t];
  float sum = 0.0F;
  float dot = 0.0F;
  for (int64_t j = threadIdx.x; j < width; j += kThreads) {
    const float scaled = dy[first + j] * gamma[j];
    sum += scaled;
    dot += scaled * ((x[first + j] - mean) * rstd);
  }
  const float a = block_sum<kThreads>(sum) / static_cast<float>(width);
  const float b = block_sum<kThreads>(dot) / static_cast<float>(width);
  for (int64_t j = threadIdx.x; j < width; j += kThreads) {
    const float skip = dskip == nullptr ? 0.0F : dskip[first + j];
    dx[first + j] = skip + rstd * (dy[first + j] * gamma[j] - a - (x[first + j] - mean) * rstd * b);
  }
}

// Shares of dgamma and dbeta.
struct ParameterTerms {
  const float* x;
  const float* mean;
  const float* rstd;
  const float* dy;
  int64_t width;
  __device__ void operator()(int64_t row, int64_t column, double (&sums)[2]) const {
    const float gradient = dy[row * width + column];
    sums[0] += gradient * ((x[row * width + column] - mean[row]) * rstd[row]);
    sums[1] += gradient;
  }
};

}  // namespace

void layer_norm_forward(Stream& stream, Matrix<const float> x, Vector<const float> gamma, Vector<const float> beta,
                        float epsilon, Matrix<float> y, Vector<float> mean, Vector<float> rstd) {
  if (x.size(0) == 0) return;
  forward_kernel<<<static_cast<unsigned>(x.size(0)), kThreads, 0, native(stream)>>>(
      x.data(), gamma.data(), beta.data(), epsilon, x.size(1), y.data(), mean.data(), rstd.data());
  PKM_CUDA(cudaGetLastError());
}

void residual_layer_norm_forward(Stream& stream, Matrix<const float> a, Matrix<const float> b,
                                 Vector<const float> gamma, Vector<const float> beta, float epsilon, Matrix<float> sum,
                                 Matrix<float> y, Vector<float> mean, Vector<float> rstd) {
  if (a.size(0) == 0) return;
  residual_forward_kernel<<<static_cast<unsigned>(a.size(0)), kThreads, 0, native(stream)>>>(
      a.data(), b.data(), gamma.data(), beta.data(), epsilon, a.size(1), sum.data(), y.data(), mean.data(),
      rstd.data());
  PKM_CUDA(cudaGetLastError());
}

void layer_norm_backward(Stream& stream, Matrix<const float> x, Vector<const float> gamma, Vector<const float> mean,
                         Vector<const float> rstd, Matrix<const float> dy, Matrix<const float> dskip, Matrix<float> dx,
                         Vector<float> dgamma, Vector<float> dbeta) {
  if (x.size(0) == 0) return;
  // First the parameters' gradients: dx may take dy's place.
  add_column_sums(stream, x.size(0), x.size(1),
                  ParameterTerms{x.data(), mean.data(), rstd.data(), dy.data(), x.size(1)},
                  ColumnSums<2>{{dgamma.data(), dbeta.data()}});
  backward_kernel<<<static_cast<unsigned>(x.size(0)), kThreads, 0, native(stream)>>>(
      x.data(), gamma.data(), mean.data(), rstd.data(), dy.data(), dskip.empty() ? nullptr : dskip.data(), x.size(1),
      dx.data());
  PKM_CUDA(cudaGetLastError());
}

}  // namespace pkmesh::cuda
