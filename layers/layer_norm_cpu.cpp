// SPDX-License-Identifier: Apache-2.0
// A row is read from memory once; the sums over it then run in the first-level cache.
#include <cmath>
#include <vector>

#include "layers/layer_norm.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kGrain = 8192;  // elements worth a thread
constexpr int64_t kBlocks = 32;   // the backward pass sums dgamma and dbeta over so many blocks of rows, then over them

struct Moments {
  float mean;
  float rstd;
};

Moments moments(const float* x, int64_t width, float epsilon) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < width; ++j) sum += x[j];
  const float mean = sum / static_cast<float>(width);
  float squares = 0.0F;  // about the mean: no cancellation
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < width; ++j) squares += (x[j] - mean) * (x[j] - mean);
  return {mean, 1.0F / std::sqrt(squares / static_cast<float>(width) + epsilon)};
}

Moments normalise(const float* x, const float* gamma, const float* beta, float epsilon, int64_t width, float* y) {
  const Moments m = moments(x, width, epsilon);
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) y[j] = (x[j] - m.mean) * m.rstd * gamma[j] + beta[j];
  return m;
}

// One row: dx, and this row's share of the sums.
void backward_row(const float* x, const float* gamma, Moments m, const float* dy, const float* dskip, int64_t width,
                  float* dx, float* dgamma, float* dbeta) {
  float sum = 0.0F;
  float dot = 0.0F;
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t j = 0; j < width; ++j) {
    const float normal = (x[j] - m.mean) * m.rstd;
    const float scaled = dy[j] * gamma[j];
    sum += scaled;
    dot += scaled * normal;
    dgamma[j] += dy[j] * normal;
    dbeta[j] += dy[j];
  }
  const float a = sum / static_cast<float>(width);
  const float b = dot / static_cast<float>(width);
  if (dskip == nullptr) {
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) dx[j] = m.rstd * (dy[j] * gamma[j] - a - (x[j] - m.mean) * m.rstd * b);
  } else {
#pragma omp simd
    for (int64_t j = 0; j < width; ++j)
      dx[j] = dskip[j] + m.rstd * (dy[j] * gamma[j] - a - (x[j] - m.mean) * m.rstd * b);
  }
}

}  // namespace

void layer_norm_forward(Stream&, Matrix<const float> x, Vector<const float> gamma, Vector<const float> beta,
                        float epsilon, Matrix<float> y, Vector<float> mean, Vector<float> rstd) {
  const int64_t width = x.size(1);
  parallel_for(0, x.size(0), 1 + kGrain / (width + 1), [&](int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
      const Moments m =
          normalise(x.data() + t * width, gamma.data(), beta.data(), epsilon, width, y.data() + t * width);
      mean[t] = m.mean;
      rstd[t] = m.rstd;
    }
  });
}

void residual_layer_norm_forward(Stream&, Matrix<const float> a, Matrix<const float> b, Vector<const float> gamma,
                                 Vector<const float> beta, float epsilon, Matrix<float> sum, Matrix<float> y,
                                 Vector<float> mean, Vector<float> rstd) {
  const int64_t width = a.size(1);
  parallel_for(0, a.size(0), 1 + kGrain / (width + 1), [&](int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
      const float* left = a.data() + t * width;
      const float* right = b.data() + t * width;
      float* row = sum.data() + t * width;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) row[j] = left[j] + right[j];
      const Moments m = normalise(row, gamma.data(), beta.data(), epsilon, width, y.data() + t * width);
      mean[t] = m.mean;
      rstd[t] = m.rstd;
    }
  });
}

void layer_norm_backward(Stream&, Matrix<const float> x, Vector<const float> gamma, Vector<const float> mean,
                         Vector<const float> rstd, Matrix<const float> dy, Matrix<const float> dskip, Matrix<float> dx,
                         Vector<float> dgamma, Vector<float> dbeta) {
  const int64_t tokens = x.size(0);
  const int64_t width = x.size(1);
  // Blocks of rows are cut the same way whatever the thread count; each sums into a row of its own.
  thread_local std::vector<float> partial_memory;
  partial_memory.assign(static_cast<size_t>(2 * kBlocks * width), 0.0F);
  const Matrix<float> partial(partial_memory.data(), 2 * kBlocks, width);
  parallel_for(0, kBlocks, 1 + kGrain * kBlocks / (tokens * width + 1), [&](int64_t from, int64_t to) {
    for (int64_t block = from; block < to; ++block)
      for (int64_t t = tokens * block / kBlocks; t < tokens * (block + 1) / kBlocks; ++t)
        backward_row(x.data() + t * width, gamma.data(), {mean[t], rstd[t]}, dy.data() + t * width,
                     dskip.empty() ? nullptr : dskip.data() + t * width, width, dx.data() + t * width,
                     partial.data() + 2 * block * width, partial.data() + (2 * block + 1) * width);
  });
  for (int64_t block = 0; block < kBlocks; ++block) {
    for (int64_t j = 0; j < width; ++j) {
      dgamma[j] += partial(2 * block, j);
      dbeta[j] += partial(2 * block + 1, j);
    }
  }
}

}  // namespace pkmesh::PKM_CPU
