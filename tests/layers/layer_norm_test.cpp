// SPDX-License-Identifier: Apache-2.0
#include "layers/layer_norm.h"

#include "tests/reference/dense.h"
#include "tests/reference/tensor.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

using namespace reference;
constexpr double kTolerance = 3e-6;
constexpr double kSumTolerance = 2e-5;  // of sums over tokens
constexpr float kEpsilon = 1e-5F;

struct Shape {
  int64_t tokens, width;
};

class LayerNormTest : public testing::TestWithParam<Shape> {
 protected:
  const int64_t tokens_ = GetParam().tokens;
  const int64_t width_ = GetParam().width;
  Numbers x_ = normals("x", tokens_* width_);
  const Numbers gamma_ = normals("gamma", width_);
  const Numbers beta_ = normals("beta", width_);
  Tensor<float> gamma_float_{gamma_};
  Tensor<float> beta_float_{beta_};
  Stream stream_;
};

TEST_P(LayerNormTest, Forward) {
  for (double& value : x_) value = static_cast<float>(value + 10.0);  // a mean that a one-pass variance would feel
  Tensor<float> x(x_);
  Tensor<float> y(tokens_ * width_);
  Tensor<float> mean(tokens_);
  Tensor<float> rstd(tokens_);
  layer_norm_forward(stream_, x.view(tokens_, width_), gamma_float_.view(), beta_float_.view(), kEpsilon,
                     y.view(tokens_, width_), mean.view(), rstd.view());
  const LayerNorm expected = layer_norm(x_, gamma_, beta_, kEpsilon);
  expect_near("y", y, expected.y, 2e-5);  // x itself is known to 1e-6 of 10 only
  expect_near("mean", mean, expected.mean, 1e-6);
  expect_near("rstd", rstd, expected.rstd, 1e-5);
}

TEST_P(LayerNormTest, ForwardOfASum) {
  const Numbers b = normals("b", tokens_ * width_);
  Numbers both = x_;
  for (size_t i = 0; i < both.size(); ++i) both[i] = static_cast<float>(both[i]) + static_cast<float>(b[i]);
  Tensor<float> sum(x_);  // a, too
  Tensor<float> b_float(b);
  Tensor<float> y(tokens_ * width_);
  Tensor<float> mean(tokens_);
  Tensor<float> rstd(tokens_);
  residual_layer_norm_forward(stream_, sum.view(tokens_, width_), b_float.view(tokens_, width_), gamma_float_.view(),
                              beta_float_.view(), kEpsilon, sum.view(tokens_, width_), y.view(tokens_, width_),
                              mean.view(), rstd.view());
  const LayerNorm expected = layer_norm(both, gamma_, beta_, kEpsilon);
  expect_near("sum", sum, both, 1e-7);
  expect_near("y", y, expected.y, 1e-5);
  expect_near("rstd", rstd, expected.rstd, 1e-5);
}

TEST_P(LayerNormTest, Backward) {
  const Numbers dy = normals("dy", tokens_ * width_);
  const Numbers dskip = normals("dskip", tokens_ * width_);
  const LayerNorm forward = layer_norm(x_, gamma_, beta_, kEpsilon);
  Tensor<float> x(x_);
  Tensor<float> mean(forward.mean);
  Tensor<float> rstd(forward.rstd);
  Tensor<float> dy_float(dy);
  Tensor<float> dx(tokens_ * width_);
  Tensor<float> dgamma(width_, 0.0F);
  Tensor<float> dbeta(width_, 0.0F);
  layer_norm_backward(stream_, x.view(tokens_, width_), gamma_float_.view(), mean.view(), rstd.view(),
                      dy_float.view(tokens_, width_), {}, dx.view(tokens_, width_), dgamma.view(), dbeta.view());
  const auto loss = [&](const Numbers& at, const Numbers& gamma, const Numbers& beta) {
    return dot(layer_norm(at, gamma, beta, kEpsilon).y, dy);
  };
  // Width 1 divides by sqrt(epsilon): finite differences see a function that is 0 with slope 0.
  expect_gradient(
      "dx", dx, x_, [&](const Numbers& at) { return loss(at, gamma_, beta_); }, kTolerance, 60);
  expect_gradient(
      "dgamma", dgamma, gamma_, [&](const Numbers& at) { return loss(x_, at, beta_); }, kSumTolerance, 60);
  expect_gradient(
      "dbeta", dbeta, beta_, [&](const Numbers& at) { return loss(x_, gamma_, at); }, kSumTolerance, 60);

  Tensor<float> with_skip(dskip);
  layer_norm_backward(stream_, x.view(tokens_, width_), gamma_float_.view(), mean.view(), rstd.view(),
                      dy_float.view(tokens_, width_), with_skip.view(tokens_, width_), with_skip.view(tokens_, width_),
                      dgamma.view(), dbeta.view());
  for (size_t i = 0; i < dskip.size(); ++i) EXPECT_NEAR(with_skip.data()[i], dskip[i] + dx.data()[i], 1e-5);
  expect_gradient(
      "twice dbeta", dbeta, beta_, [&](const Numbers& at) { return 2 * loss(x_, gamma_, at); }, kSumTolerance, 60);
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayerNormTest,
                         testing::Values(Shape{0, 5}, Shape{1, 1}, Shape{1, 8}, Shape{3, 17}, Shape{37, 9},
                                         Shape{100, 65}));

TEST(LayerNormTest, DoesNotDependOnTheThreads) {
  constexpr int64_t kTokens = 200;
  constexpr int64_t kWidth = 203;
  Stream stream;
  Tensor<float> x(normals("x", kTokens * kWidth));
  Tensor<float> dy(normals("dy", kTokens * kWidth));
  Tensor<float> gamma(normals("gamma", kWidth));
  std::vector<std::vector<float>> seen;
  for (const int count : {1, 2, 3, 1}) {
    const ThreadScope scope(count);
    Tensor<float> y(kTokens * kWidth);
    Tensor<float> mean(kTokens);
    Tensor<float> rstd(kTokens);
    Tensor<float> dgamma(kWidth, 0.0F);
    Tensor<float> dbeta(kWidth, 0.0F);
    const auto shaped = [](Tensor<float>& tensor) { return tensor.view(kTokens, kWidth); };
    layer_norm_forward(stream, shaped(x), gamma.view(), gamma.view(), kEpsilon, shaped(y), mean.view(), rstd.view());
    layer_norm_backward(stream, shaped(x), gamma.view(), mean.view(), rstd.view(), shaped(dy), {}, shaped(y),
                        dgamma.view(), dbeta.view());
    std::vector<float> all = y.values();
    for (Tensor<float>* tensor : {&dgamma, &dbeta})
      for (const float value : tensor->values()) all.push_back(value);
    seen.push_back(all);
  }
  for (size_t i = 1; i < seen.size(); ++i) EXPECT_EQ(seen[i], seen[0]);
}

}  // namespace
}  // namespace pkmesh
