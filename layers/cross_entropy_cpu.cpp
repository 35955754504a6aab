// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "layers/cross_entropy.h"
#include "layers/gemm.h"
#include "layers/vector_math.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kStrip = 2048;  // exponentials summed in float before their sum goes into a double

void check_targets(Vector<const int32_t> targets, int64_t vocabulary) {
  for (int64_t t = 0; t < targets.count(); ++t)
    PKM_CHECK(targets[t] == kIgnoredTarget || (targets[t] >= 0 && targets[t] < vocabulary),
              "cross_entropy: target {} of token {} is outside the vocabulary of {}", targets[t], t, vocabulary);
}

float maximum(const float* x, int64_t count) {
  float top = x[0];
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < count; ++j) top = x[j] > top ? x[j] : top;
  return top;
}

double sum_of_exp(const float* x, int64_t count, float top) {
  double total = 0.0;
  for (int64_t first = 0; first < count; first += kStrip) {
    const int64_t last = std::min(first + kStrip, count);
    float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = first; j < last; ++j) sum += fast_exp(x[j] - top);
    total += sum;
  }
  return total;
}

// As above, and leaves the exponentials in x.
double exp_and_sum(float* x, int64_t count, float top) {
  double total = 0.0;
  for (int64_t first = 0; first < count; first += kStrip) {
    const int64_t last = std::min(first + kStrip, count);
    float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = first; j < last; ++j) {
      x[j] = fast_exp(x[j] - top);
      sum += x[j];
    }
    total += sum;
  }
  return total;
}

float loss_of(double sum, float top, float logit) {
  return static_cast<float>(std::log(sum) + (static_cast<double>(top) - logit));
}

float forward_row(const float* logits, int64_t vocabulary, int32_t target) {
  if (target == kIgnoredTarget) return 0.0F;
  const float top = maximum(logits, vocabulary);
  return loss_of(sum_of_exp(logits, vocabulary, top), top, logits[target]);
}

// Turns the logits into gradient_scale * (softmax - one_hot(target)).
float train_row(float* logits, int64_t vocabulary, int32_t target, float gradient_scale) {
  if (target == kIgnoredTarget) {
    std::fill_n(logits, vocabulary, 0.0F);
    return 0.0F;
  }
  const float top = maximum(logits, vocabulary);
  const float logit = logits[target];
  const double sum = exp_and_sum(logits, vocabulary, top);
  const auto factor = static_cast<float>(gradient_scale / sum);
#pragma omp simd
  for (int64_t j = 0; j < vocabulary; ++j) logits[j] *= factor;
  logits[target] -= gradient_scale;
  return loss_of(sum, top, logit);
}

// Calls body(first, last, logits) for chunks of tokens, with their logits (last - first, V).
template <class Body>
void for_each_chunk(Stream& stream, Matrix<const float> x, Matrix<const float> embedding, Matrix<float> scratch,
                    const Body& body) {
  for (int64_t first = 0; first < x.size(0); first += scratch.size(0)) {
    const int64_t last = std::min(first + scratch.size(0), x.size(0));
    const Matrix<float> logits = scratch.rows(0, last - first);
    PKM_CPU::gemm(stream, Transpose::kNo, Transpose::kYes, 1.0F, x.rows(first, last), embedding, 0.0F, logits);
    body(first, last, logits);
  }
}

}  // namespace

void cross_entropy_forward(Stream& stream, Matrix<const float> x, Matrix<const float> embedding,
                           Vector<const int32_t> targets, Matrix<float> scratch, Vector<float> losses) {
  const int64_t vocabulary = embedding.size(0);
  check_targets(targets, vocabulary);
  for_each_chunk(stream, x, embedding, scratch, [&](int64_t first, int64_t last, Matrix<float> logits) {
    parallel_for(first, last, 1 + kStrip / vocabulary, [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) losses[t] = forward_row(logits[t - first].data(), vocabulary, targets[t]);
    });
  });
}

void cross_entropy_train(Stream& stream, Matrix<const float> x, Matrix<const float> embedding,
                         Vector<const int32_t> targets, float gradient_scale, Matrix<float> scratch,
                         Vector<float> losses, Matrix<float> dx, Matrix<float> dembedding) {
  const int64_t vocabulary = embedding.size(0);
  check_targets(targets, vocabulary);
  for_each_chunk(stream, x, embedding, scratch, [&](int64_t first, int64_t last, Matrix<float> logits) {
    parallel_for(first, last, 1 + kStrip / vocabulary, [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t)
        losses[t] = train_row(logits[t - first].data(), vocabulary, targets[t], gradient_scale);
    });
    PKM_CPU::gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, logits, embedding, 0.0F, dx.rows(first, last));
    PKM_CPU::gemm(stream, Transpose::kYes, Transpose::kNo, 1.0F, logits, x.rows(first, last), 1.0F, dembedding);
  });
}

}  // namespace pkmesh::PKM_CPU
