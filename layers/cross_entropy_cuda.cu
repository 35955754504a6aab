// SPDX-License-Identifier: Apache-2.0
// Chunks of logits by cuBLAS; one block per row finds maximum and sum in one pass, and turns the row into its gradient
// in a second one.
#include <cfloat>

#include "layers/cross_entropy.h"
#include "layers/gemm_cuda.h"
#include "runtime/cuda_kernel.h"
#include "runtime/cuda_scratch.h"

namespace pkmesh::cuda {
namespace {

constexpr int kThreads = 512;

struct Softmax {
  float top;   // the row's maximum
  double sum;  // of exp(logit - top)
};

// The same in each thread of the block.
__device__ Softmax softmax_of(const float* logits, int64_t vocabulary) {
  float top = -FLT_MAX;  // finite, so that a logit of -inf adds zero and not NaN
  float sum = 0.0F;      // relative to this thread's maximum
  for (int64_t j = threadIdx.x; j < vocabulary; j += kThreads) {
    const float logit = logits[j];
    if (logit > top) {
      sum = sum * expf(top - logit) + 1.0F;
      top = logit;
    } else {
      sum += expf(logit - top);  // NaN stays NaN
    }
  }
  const float block_top = block_max<kThreads>(top);
  return {block_top, block_sum<kThreads>(static_cast<double>(sum * expf(top - block_top)))};
}

// One block per row. With kTrain the logits become gradient_scale * (softmax - one_hot(target)).
template <bool kTrain>
__global__ void row_kernel(const int32_t* targets, int64_t vocabulary, float gradient_scale, float* logits,
                           float* losses) {
  float* row = logits + blockIdx.x * vocabulary;
  const int32_t target = targets[blockIdx.x];
  check_index("cross_entropy: target", target, vocabulary);
  const float logit = row[target];
  const Softmax softmax = softmax_of(row, vocabulary);  // all threads have read their logit when it returns
  if (threadIdx.x == 0)
    losses[blockIdx.x] = static_cast<float>(log(softmax.sum) + (static_cast<double>(softmax.top) - logit));
  if (!kTrain) return;
  const auto factor = static_cast<float>(gradient_scale / softmax.sum);
  for (int64_t j = threadIdx.x; j < vocabulary; j += kThreads)
    row[j] = expf(row[j] - softmax.top) * factor - (j == target ? gradient_scale : 0.0F);
}

// The matrix products of all chunks. In 16 bits the embedding is rounded once for all of them.
class Products {
 public:
  Products(Stream& stream, Matrix<const float> embedding, int64_t chunk, bool train)
      : stream_(stream), math_(stream.math()), embedding_(embedding) {
    if (math_ == Math::kFp32) return;
    ScratchPlan plan;
    const auto rounded = plan.add<std::byte>(narrow_bytes(embedding.size(0), embedding.size(1)));
    const auto x = plan.add<std::byte>(narrow_bytes(chunk, embedding.size(1)));
    const auto logits = plan.add<std::byte>(train ? narrow_bytes(chunk, embedding.size(0)) : 0);
    std::byte* const memory = plan.take(stream);
    narrow_embedding_ = narrow(stream, math_, embedding, rounded.in(memory));
    x_memory_ = x.in(memory);
    logits_memory_ = logits.in(memory);
  }

  // logits = x E^T.
  void logits(Matrix<const float> x, Matrix<float> logits) {
    if (math_ == Math::kFp32)
      return cuda::gemm(stream_, Transpose::kNo, Transpose::kYes, 1.0F, x, embedding_, 0.0F, logits);
    narrow_x_ = narrow(stream_, math_, x, x_memory_);
    multiply(stream_, math_, Transpose::kNo, Transpose::kYes, narrow_x_, narrow_embedding_, 1.0F, 0.0F, logits);
  }

  // dx = dlogits E, dembedding += dlogits^T x, of the x that logits() was given last.
  void gradients(Matrix<const float> x, Matrix<const float> dlogits, Matrix<float> dx, Matrix<float> dembedding) {
    if (math_ == Math::kFp32) {
      cuda::gemm(stream_, Transpose::kNo, Transpose::kNo, 1.0F, dlogits, embedding_, 0.0F, dx);
      return cuda::gemm(stream_, Transpose::kYes, Transpose::kNo, 1.0F, dlogits, x, 1.0F, dembedding);
    }
    const Narrow rounded = narrow(stream_, math_, dlogits, logits_memory_);
    multiply(stream_, math_, Transpose::kNo, Transpose::kNo, rounded, narrow_embedding_, 1.0F, 0.0F, dx);
    multiply(stream_, math_, Transpose::kYes, Transpose::kNo, rounded, narrow_x_, 1.0F, 1.0F, dembedding);
  }

 private:
  Stream& stream_;
  Math math_;
  Matrix<const float> embedding_;
  Narrow narrow_embedding_{};
  Narrow narrow_x_{};
  std::byte* x_memory_ = nullptr;
  std::byte* logits_memory_ = nullptr;
};

// Calls body(first, last, logits) for chunks of tokens, after queueing their logits (last - first, V).
template <class Body>
void for_each_chunk(Products& products, Matrix<const float> x, Matrix<float> scratch, const Body& body) {
  for (int64_t first = 0; first < x.size(0); first += scratch.size(0)) {
    const int64_t last = std::min(first + scratch.size(0), x.size(0));
    const Matrix<float> logits = scratch.rows(0, last - first);
    products.logits(x.rows(first, last), logits);
    body(first, last, logits);
  }
}

}  // namespace

void cross_entropy_forward(Stream& stream, Matrix<const float> x, Matrix<const float> embedding,
                           Vector<const int32_t> targets, Matrix<float> scratch, Vector<float> losses) {
  Products products(stream, embedding, scratch.size(0), /*train=*/false);
  for_each_chunk(products, x, scratch, [&](int64_t first, int64_t last, Matrix<float> logits) {
    row_kernel<false><<<static_cast<unsigned>(last - first), kThreads, 0, native(stream)>>>(
        targets.data() + first, embedding.size(0), 0.0F, logits.data(), losses.data() + first);
    PKM_CUDA(cudaGetLastError());
  });
}

void cross_entropy_train(Stream& stream, Matrix<const float> x, Matrix<const float> embedding,
                         Vector<const int32_t> targets, float gradient_scale, Matrix<float> scratch,
                         Vector<float> losses, Matrix<float> dx, Matrix<float> dembedding) {
  Products products(stream, embedding, scratch.size(0), /*train=*/true);
  for_each_chunk(products, x, scratch, [&](int64_t first, int64_t last, Matrix<float> logits) {
    row_kernel<true><<<static_cast<unsigned>(last - first), kThreads, 0, native(stream)>>>(
        targets.data() + first, embedding.size(0), gradient_scale, logits.data(), losses.data() + first);
    PKM_CUDA(cudaGetLastError());
    products.gradients(x.rows(first, last), logits, dx.rows(first, last), dembedding);
  });
}

}  // namespace pkmesh::cuda
