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
constexpr int64_t kBlock = 2048;  // words of the vocabulary whose logits are one matrix: large products, dense operands

void check_targets(Vector<const int32_t> targets, int64_t vocabulary) {
  for (int64_t t = 0; t < targets.count(); ++t)
    PKM_CHECK(targets[t] >= 0 && targets[t] < vocabulary,
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

// The logits of a chunk of tokens: one dense matrix (tokens, kBlock) after the other, a block of the vocabulary each.
class Logits {
 public:
  Logits(float* memory, int64_t tokens, int64_t vocabulary)
      : memory_(memory), tokens_(tokens), vocabulary_(vocabulary) {}

  // Calls body(first, last, matrix) for the blocks of the vocabulary.
  template <class Body>
  void for_each_block(const Body& body) const {
    for (int64_t first = 0; first < vocabulary_; first += kBlock) {
      const int64_t last = std::min(first + kBlock, vocabulary_);
      body(first, last, Matrix<float>(memory_ + first * tokens_, tokens_, last - first));
    }
  }
  float& at(int64_t token, int64_t word) const {
    const int64_t first = word / kBlock * kBlock;
    const int64_t width = std::min(kBlock, vocabulary_ - first);
    return memory_[first * tokens_ + token * width + word - first];
  }

 private:
  float* memory_;
  int64_t tokens_;
  int64_t vocabulary_;
};

float maximum(const Logits& logits, int64_t token) {
  float top = logits.at(token, 0);
  logits.for_each_block([&](int64_t first, int64_t last, Matrix<float> block) {
    const float of_block = maximum(block[token].data(), last - first);
    top = of_block > top ? of_block : top;
  });
  return top;
}

float forward_row(const Logits& logits, int64_t token, int32_t target) {
  const float top = maximum(logits, token);
  double sum = 0.0;
  logits.for_each_block([&](int64_t first, int64_t last, Matrix<float> block) {
    sum += sum_of_exp(block[token].data(), last - first, top);
  });
  return loss_of(sum, top, logits.at(token, target));
}

// Turns the logits into gradient_scale * (softmax - one_hot(target)).
float train_row(const Logits& logits, int64_t token, int32_t target, float gradient_scale) {
  const float top = maximum(logits, token);
  const float logit = logits.at(token, target);
  double sum = 0.0;
  logits.for_each_block([&](int64_t first, int64_t last, Matrix<float> block) {
    sum += exp_and_sum(block[token].data(), last - first, top);
  });
  const auto factor = static_cast<float>(gradient_scale / sum);
  logits.for_each_block([&](int64_t first, int64_t last, Matrix<float> block) {
    float* row = block[token].data();
#pragma omp simd
    for (int64_t j = 0; j < last - first; ++j) row[j] *= factor;
  });
  logits.at(token, target) -= gradient_scale;
  return loss_of(sum, top, logit);
}

// Calls body(first, last, logits) for chunks of tokens [first, last).
template <class Body>
void for_each_chunk(Stream& stream, Matrix<const float> x, Matrix<const float> embedding, Matrix<float> scratch,
                    const Body& body) {
  for (int64_t first = 0; first < x.size(0); first += scratch.size(0)) {
    const int64_t last = std::min(first + scratch.size(0), x.size(0));
    const Logits logits(scratch.data(), last - first, embedding.size(0));
    logits.for_each_block([&](int64_t from, int64_t to, Matrix<float> block) {
      PKM_CPU::gemm(stream, Transpose::kNo, Transpose::kYes, 1.0F, x.rows(first, last), embedding.rows(from, to), 0.0F,
                    block);
    });
    body(first, last, logits);
  }
}

}  // namespace

void cross_entropy_forward(Stream& stream, Matrix<const float> x, Matrix<const float> embedding,
                           Vector<const int32_t> targets, Matrix<float> scratch, Vector<float> losses) {
  const int64_t vocabulary = embedding.size(0);
  check_targets(targets, vocabulary);
  for_each_chunk(stream, x, embedding, scratch, [&](int64_t first, int64_t last, const Logits& logits) {
    parallel_for(first, last, 1 + kStrip / vocabulary, [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) losses[t] = forward_row(logits, t - first, targets[t]);
    });
  });
}

void cross_entropy_train(Stream& stream, Matrix<const float> x, Matrix<const float> embedding,
                         Vector<const int32_t> targets, float gradient_scale, Matrix<float> scratch,
                         Vector<float> losses, Matrix<float> dx, Matrix<float> dembedding) {
  const int64_t vocabulary = embedding.size(0);
  check_targets(targets, vocabulary);
  for_each_chunk(stream, x, embedding, scratch, [&](int64_t first, int64_t last, const Logits& logits) {
    parallel_for(first, last, 1 + kStrip / vocabulary, [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) losses[t] = train_row(logits, t - first, targets[t], gradient_scale);
    });
    logits.for_each_block([&](int64_t from, int64_t to, Matrix<float> block) {
      PKM_CPU::gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, block, embedding.rows(from, to),
                    from > 0 ? 1.0F : 0.0F, dx.rows(first, last));
      PKM_CPU::gemm(stream, Transpose::kYes, Transpose::kNo, 1.0F, block, x.rows(first, last), 1.0F,
                    dembedding.rows(from, to));
    });
  });
}

}  // namespace pkmesh::PKM_CPU
