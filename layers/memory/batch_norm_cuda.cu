// SPDX-License-Identifier: Apache-2.0
// A thread keeps one feature and walks down a block of tokens, so that neighbouring threads read neighbouring elements
// and what belongs to the feature is computed once. Sums are in double: per block of tokens, then over the blocks in
// their order. The blocks depend on the number of tokens alone.
#include "layers/memory/batch_norm.h"
#include "runtime/cuda_kernel.h"
#include "runtime/cuda_scratch.h"

namespace pkmesh::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kBlocks = 128;  // of tokens, at most
constexpr int64_t kBlockTokens = 32;

int64_t token_blocks(int64_t tokens) {
  return std::clamp<int64_t>(tokens / kBlockTokens, 1, kBlocks);
}

dim3 grid_for(int64_t tokens, int64_t width) {
  return {static_cast<unsigned>(ceil_divide(width, kThreads)), static_cast<unsigned>(token_blocks(tokens))};
}

struct Tokens {
  int64_t begin;
  int64_t end;
};

// Of this block, of a grid by grid_for().
__device__ Tokens tokens_of_block(int64_t tokens) {
  return {tokens * blockIdx.y / gridDim.y, tokens * (blockIdx.y + 1) / gridDim.y};
}
__device__ int64_t feature_of_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// What a kernel adds up of an element: kSums numbers.
struct ValueAndSquare {
  static constexpr int kSums = 2;
  const float* x;
  __device__ void add(int64_t i, double* sums) const {
    const double value = x[i];
    sums[0] += value;
    sums[1] += value * value;
  }
};

struct GradientAndDot {
  static constexpr int kSums = 2;
  const float* normal;
  const float* dy;
  __device__ void add(int64_t i, double* sums) const {
    sums[0] += dy[i];
    sums[1] += static_cast<double>(dy[i]) * normal[i];
  }
};

// partials (token blocks, kSums, width).
template <class Terms>
__global__ void __launch_bounds__(kThreads)
    sum_blocks_kernel(const Terms terms, int64_t tokens, int64_t width, double* partials) {
  const int64_t feature = feature_of_thread();
  if (feature >= width) return;
  double sums[Terms::kSums] = {};
  const Tokens block = tokens_of_block(tokens);
  for (int64_t token = block.begin; token < block.end; ++token) terms.add(token * width + feature, sums);
  for (int s = 0; s < Terms::kSums; ++s) partials[(blockIdx.y * Terms::kSums + s) * width + feature] = sums[s];
}

struct AddBlocks {
  const double* partials;  // (blocks, count)
  int64_t blocks;
  int64_t count;
  double* totals;  // (count)
  __device__ void operator()(int64_t i) const {
    double total = 0;
    for (int64_t block = 0; block < blocks; ++block) total += partials[block * count + i];
    totals[i] = total;
  }
};

// totals (kSums, width) of all tokens.
template <class Terms>
void sum_tokens(Stream& stream, const Terms& terms, int64_t tokens, int64_t width, double* totals) {
  if (width == 0) return;
  const int64_t count = Terms::kSums * width;
  auto* const partials = scratch<double>(stream, token_blocks(tokens) * count);
  sum_blocks_kernel<<<grid_for(tokens, width), kThreads, 0, native(stream)>>>(terms, tokens, width, partials);
  PKM_CUDA(cudaGetLastError());
  for_each(stream, count, AddBlocks{partials, token_blocks(tokens), count, totals});
}

struct SetNumber {
  double value;
  double* number;
  __device__ void operator()(int64_t) const { *number = value; }
};

struct Statistics {
  const double* sums;  // (2 width + 1)
  int64_t width;
  float momentum;
  float* mean;
  float* variance;
  float* running_mean;
  float* running_variance;
  __device__ void operator()(int64_t j) const {
    const double tokens = sums[2 * width];
    const double count = fmax(tokens, 1.0);
    const double difference = sums[width + j] - sums[j] * sums[j] / count;
    const double squares = difference < 0 ? 0 : difference;  // about the mean; NaN stays NaN
    mean[j] = static_cast<float>(sums[j] / count);
    variance[j] = static_cast<float>(squares / count);
    if (tokens < 2.0) return;
    const auto unbiased = static_cast<float>(squares / (tokens - 1.0));
    running_mean[j] = (1.0F - momentum) * running_mean[j] + momentum * mean[j];
    running_variance[j] = (1.0F - momentum) * running_variance[j] + momentum * unbiased;
  }
};

// normal may be null; y may be x.
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(const float* x, int64_t tokens, int64_t width, const float* mean, const float* variance,
                     float epsilon, const float* weight, const float* bias, float* normal, float* y) {
  const int64_t feature = feature_of_thread();
  if (feature >= width) return;
  const float scale = 1.0F / sqrtf(variance[feature] + epsilon);
  const float shift = mean[feature];
  const float gain = weight[feature];
  const float offset = bias[feature];
  const Tokens block = tokens_of_block(tokens);
  for (int64_t token = block.begin; token < block.end; ++token) {
    const int64_t i = token * width + feature;
    const float value = (x[i] - shift) * scale;
    if (normal != nullptr) normal[i] = value;
    y[i] = value * gain + offset;
  }
}

struct AddParameterGradients {
  const double* sums;  // (2, width)
  int64_t width;
  float* dweight;
  float* dbias;
  __device__ void operator()(int64_t j) const {
    dbias[j] += static_cast<float>(sums[j]);
    dweight[j] += static_cast<float>(sums[width + j]);
  }
};

// dx may be dy.
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const float* normal, const float* dy, int64_t tokens, int64_t width, const double* batch_sums,
                    const double* sums, const float* variance, float epsilon, const float* weight, float* dx) {
  const int64_t feature = feature_of_thread();
  if (feature >= width) return;
  const double count = fmax(batch_sums[2 * width], 1.0);
  const auto mean_dy = static_cast<float>(sums[feature] / count);
  const auto mean_dot = static_cast<float>(sums[width + feature] / count);
  const float factor = 1.0F / sqrtf(variance[feature] + epsilon) * weight[feature];
  const Tokens block = tokens_of_block(tokens);
  for (int64_t token = block.begin; token < block.end; ++token) {
    const int64_t i = token * width + feature;
    dx[i] = factor * (dy[i] - mean_dy - normal[i] * mean_dot);
  }
}

}  // namespace

void batch_norm_sums(Stream& stream, Matrix<const float> x, Vector<double> sums) {
  const int64_t width = x.size(1);
  sum_tokens(stream, ValueAndSquare{x.data()}, x.size(0), width, sums.data());
  for_each(stream, 1, SetNumber{static_cast<double>(x.size(0)), sums.data() + 2 * width});
}

void batch_norm_statistics(Stream& stream, Vector<const double> sums, float momentum, Vector<float> mean,
                           Vector<float> variance, Vector<float> running_mean, Vector<float> running_variance) {
  for_each(stream, mean.count(),
           Statistics{sums.data(), mean.count(), momentum, mean.data(), variance.data(), running_mean.data(),
                      running_variance.data()});
}

void batch_norm_normalise(Stream& stream, Matrix<const float> x, Vector<const float> mean, Vector<const float> variance,
                          float epsilon, Vector<const float> weight, Vector<const float> bias, Matrix<float> normal,
                          Matrix<float> y) {
  if (x.empty()) return;
  normalise_kernel<<<grid_for(x.size(0), x.size(1)), kThreads, 0, native(stream)>>>(
      x.data(), x.size(0), x.size(1), mean.data(), variance.data(), epsilon, weight.data(), bias.data(),
      normal.empty() ? nullptr : normal.data(), y.data());
  PKM_CUDA(cudaGetLastError());
}

void batch_norm_backward_sums(Stream& stream, Matrix<const float> normal, Matrix<const float> dy, Matrix<double> sums,
                              Vector<float> dweight, Vector<float> dbias) {
  const int64_t width = normal.size(1);
  sum_tokens(stream, GradientAndDot{normal.data(), dy.data()}, normal.size(0), width, sums.data());
  for_each(stream, width, AddParameterGradients{sums.data(), width, dweight.data(), dbias.data()});
}

void batch_norm_backward_apply(Stream& stream, Matrix<const float> normal, Matrix<const float> dy,
                               Vector<const double> batch_sums, Matrix<const double> sums, Vector<const float> variance,
                               float epsilon, Vector<const float> weight, Matrix<float> dx) {
  if (normal.empty()) return;
  backward_kernel<<<grid_for(normal.size(0), normal.size(1)), kThreads, 0, native(stream)>>>(
      normal.data(), dy.data(), normal.size(0), normal.size(1), batch_sums.data(), sums.data(), variance.data(),
      epsilon, weight.data(), dx.data());
  PKM_CUDA(cudaGetLastError());
}

}  // namespace pkmesh::cuda
