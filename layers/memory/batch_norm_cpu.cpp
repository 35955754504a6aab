// SPDX-License-Identifier: Apache-2.0
// Tokens are cut into blocks that depend on their number alone. A block streams through its rows with its sums of
// each feature (vectors across features); the blocks' sums are then added in their order.
#include <cmath>
#include <vector>

#include "layers/memory/batch_norm.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth a thread
constexpr int64_t kBlocks = 32;    // of tokens, at most
constexpr int64_t kBlockTokens = 32;

// totals (width) = what add_row(t, sums) adds to its sums (width), over all t.
template <class AddRow>
void sum_rows(int64_t tokens, int64_t width, double* totals, const AddRow& add_row) {
  thread_local std::vector<double> memory;
  const int64_t blocks = std::clamp<int64_t>(tokens / kBlockTokens, 1, kBlocks);
  memory.assign(static_cast<size_t>(blocks * width), 0.0);
  double* const partials = memory.data();  // the lambda's threads must not name their own `memory`
  parallel_for(0, blocks, 1 + kGrain * blocks / (tokens * width + 1), [&](int64_t from, int64_t to) {
    for (int64_t block = from; block < to; ++block)
      for (int64_t t = tokens * block / blocks; t < tokens * (block + 1) / blocks; ++t)
        add_row(t, partials + block * width);
  });
  std::copy_n(partials, width, totals);
  for (int64_t block = 1; block < blocks; ++block)
    for (int64_t j = 0; j < width; ++j) totals[j] += partials[block * width + j];
}

// Per feature, of one thread until its next call.
float* reciprocal_deviations(Vector<const float> variance, float epsilon) {
  thread_local std::vector<float> memory;
  memory.resize(static_cast<size_t>(variance.count()));
  for (size_t j = 0; j < memory.size(); ++j) memory[j] = 1.0F / std::sqrt(variance.data()[j] + epsilon);
  return memory.data();
}

}  // namespace

void batch_norm_sums(Stream&, Matrix<const float> x, Vector<double> sums) {
  const int64_t tokens = x.size(0);
  const int64_t width = x.size(1);
  sum_rows(tokens, 2 * width, sums.data(), [&](int64_t t, double* sum) {
    const float* row = x.data() + t * width;
    double* squares = sum + width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const double value = row[j];
      sum[j] += value;
      squares[j] += value * value;
    }
  });
  sums[2 * width] = static_cast<double>(tokens);
}

void batch_norm_statistics(Stream&, Vector<const double> sums, float momentum, Vector<float> mean,
                           Vector<float> variance, Vector<float> running_mean, Vector<float> running_variance) {
  const int64_t width = mean.size(0);
  const double tokens = sums[2 * width];
  const double count = std::max(tokens, 1.0);
  for (int64_t j = 0; j < width; ++j) {
    const double difference = sums[width + j] - sums[j] * sums[j] / count;
    const double squares = difference < 0 ? 0 : difference;  // about the mean; NaN stays NaN
    mean[j] = static_cast<float>(sums[j] / count);
    variance[j] = static_cast<float>(squares / count);
    if (tokens < 2.0) continue;
    const auto unbiased = static_cast<float>(squares / (tokens - 1.0));
    running_mean[j] = (1.0F - momentum) * running_mean[j] + momentum * mean[j];
    running_variance[j] = (1.0F - momentum) * running_variance[j] + momentum * unbiased;
  }
}

void batch_norm_normalise(Stream&, Matrix<const float> x, Vector<const float> mean, Vector<const float> variance,
                          float epsilon, Vector<const float> weight, Vector<const float> bias, Matrix<float> normal,
                          Matrix<float> y) {
  const int64_t width = x.size(1);
  parallel_for(0, x.size(0), 1 + kGrain / (width + 1), [&](int64_t from, int64_t to) {
    const float* scale = reciprocal_deviations(variance, epsilon);
    for (int64_t t = from; t < to; ++t) {
      const float* row = x.data() + t * width;
      float* out = y.data() + t * width;
      float* kept = normal.empty() ? out : normal.data() + t * width;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) kept[j] = (row[j] - mean.data()[j]) * scale[j];
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) out[j] = kept[j] * weight.data()[j] + bias.data()[j];
    }
  });
}

void batch_norm_backward_sums(Stream&, Matrix<const float> normal, Matrix<const float> dy, Matrix<double> sums,
                              Vector<float> dweight, Vector<float> dbias) {
  const int64_t width = normal.size(1);
  sum_rows(normal.size(0), 2 * width, sums.data(), [&](int64_t t, double* sum) {
    const float* row = normal.data() + t * width;
    const float* gradient = dy.data() + t * width;
    double* dot = sum + width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      sum[j] += gradient[j];
      dot[j] += static_cast<double>(gradient[j]) * row[j];
    }
  });
  for (int64_t j = 0; j < width; ++j) {
    dbias[j] += static_cast<float>(sums(0, j));
    dweight[j] += static_cast<float>(sums(1, j));
  }
}

void batch_norm_backward_apply(Stream&, Matrix<const float> normal, Matrix<const float> dy,
                               Vector<const double> batch_sums, Matrix<const double> sums, Vector<const float> variance,
                               float epsilon, Vector<const float> weight, Matrix<float> dx) {
  const int64_t width = normal.size(1);
  thread_local std::vector<float> memory;  // the two sums, over the number of tokens
  memory.resize(static_cast<size_t>(2 * width));
  const double count = std::max(batch_sums[2 * width], 1.0);
  for (int64_t j = 0; j < 2 * width; ++j) memory[static_cast<size_t>(j)] = static_cast<float>(sums.data()[j] / count);
  const float* const mean_dy = memory.data();
  const float* const mean_dot = mean_dy + width;
  parallel_for(0, normal.size(0), 1 + kGrain / (width + 1), [&](int64_t from, int64_t to) {
    const float* scale = reciprocal_deviations(variance, epsilon);
    for (int64_t t = from; t < to; ++t) {
      const float* row = normal.data() + t * width;
      const float* gradient = dy.data() + t * width;
      float* out = dx.data() + t * width;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j)
        out[j] = scale[j] * weight.data()[j] * (gradient[j] - mean_dy[j] - row[j] * mean_dot[j]);
    }
  });
}

}  // namespace pkmesh::PKM_CPU
