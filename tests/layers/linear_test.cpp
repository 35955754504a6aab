// SPDX-License-Identifier: Apache-2.0
#include "layers/linear.h"

#include "tests/reference/dense.h"
#include "tests/reference/tensor.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

using namespace reference;
constexpr double kTolerance = 2e-5;

struct Shape {
  int64_t tokens, inputs, outputs;
};

class Linear : public testing::TestWithParam<Shape> {};

TEST_P(Linear, Forward) {
  const auto [tokens, inputs, outputs] = GetParam();
  Stream stream;
  const Numbers x = normals("x", tokens * inputs);
  const Numbers weight = normals("weight", outputs * inputs);
  const Numbers bias = normals("bias", outputs);
  Tensor<float> x_float(x);
  Tensor<float> weight_float(weight);
  Tensor<float> bias_float(bias);
  Tensor<float> y(tokens * outputs);
  linear_forward(stream, x_float.view(tokens, inputs), weight_float.view(outputs, inputs), bias_float.view(outputs),
                 y.view(tokens, outputs));
  expect_near("y", y, linear(x, weight, bias, tokens, inputs, outputs), kTolerance);
  linear_forward(stream, x_float.view(tokens, inputs), weight_float.view(outputs, inputs), {}, y.view(tokens, outputs));
  expect_near("y without bias", y, linear(x, weight, {}, tokens, inputs, outputs), kTolerance);
}

TEST_P(Linear, Backward) {
  const auto [tokens, inputs, outputs] = GetParam();
  Stream stream;
  const Numbers x = normals("x", tokens * inputs);
  const Numbers weight = normals("weight", outputs * inputs);
  const Numbers bias = normals("bias", outputs);
  const Numbers dy = normals("dy", tokens * outputs);
  Tensor<float> x_float(x);
  Tensor<float> weight_float(weight);
  Tensor<float> dy_float(dy);
  Tensor<float> dx(tokens * inputs);
  Tensor<float> dweight(outputs * inputs, 0.0F);
  Tensor<float> dbias(outputs, 0.0F);
  linear_backward(stream, x_float.view(tokens, inputs), weight_float.view(outputs, inputs),
                  dy_float.view(tokens, outputs), dx.view(tokens, inputs), dweight.view(outputs, inputs),
                  dbias.view(outputs));
  const auto loss = [&, t = tokens, i = inputs, o = outputs](const Numbers& a, const Numbers& b, const Numbers& c) {
    return dot(linear(a, b, c, t, i, o), dy);
  };
  expect_gradient(
      "dx", dx, x, [&](const Numbers& at) { return loss(at, weight, bias); }, kTolerance, 40);
  expect_gradient(
      "dweight", dweight, weight, [&](const Numbers& at) { return loss(x, at, bias); }, kTolerance, 40);
  if (outputs > 0)
    expect_gradient(
        "dbias", dbias, bias, [&](const Numbers& at) { return loss(x, weight, at); }, kTolerance, 200);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Linear,
                         testing::Values(Shape{1, 1, 1}, Shape{0, 3, 4}, Shape{5, 7, 3}, Shape{33, 17, 131},
                                         Shape{70, 5, 2}, Shape{3, 0, 2}));

// Large enough for whichever library multiplies large matrices.
TEST(Linear, LargeForwardAddsItsBias) {
  const int64_t tokens = 131;
  const int64_t inputs = 2100;
  const int64_t outputs = 70;
  const Numbers x = normals("x", tokens * inputs);
  const Numbers weight = normals("weight", outputs * inputs, 0.02);
  const Numbers bias = normals("bias", outputs);
  Tensor<float> x_float(x);
  Tensor<float> weight_float(weight);
  Tensor<float> bias_float(bias);
  const Numbers exact = linear(x, weight, bias, tokens, inputs, outputs);
  for (const int count : {1, 2}) {
    const ThreadScope scope(count);
    for (const Math math : {Math::kFp32, Math::kBf16}) {
      Stream stream;
      stream.set_math(math);
      Tensor<float> y(tokens * outputs);
      linear_forward(stream, x_float.view(tokens, inputs), weight_float.view(outputs, inputs), bias_float.view(outputs),
                     y.view(tokens, outputs));
      expect_near("y", y, exact, math == Math::kFp32 ? kTolerance : 0.02);
    }
  }
}

TEST(Linear, GradientsOfParametersAccumulateAndUnwantedOnesAreLeftOut) {
  Stream stream;
  Tensor<float> x(Numbers{1, 2});
  Tensor<float> weight(Numbers{3, 4});
  Tensor<float> dy(Numbers{10});
  Tensor<float> dweight(Numbers{100, 100});
  Tensor<float> dbias(Numbers{1000});
  linear_backward(stream, x.view(1, 2), weight.view(1, 2), dy.view(1, 1), {}, dweight.view(1, 2), dbias.view(1));
  expect_near("dweight", dweight, {110, 120}, 0);
  expect_near("dbias", dbias, {1010}, 0);
  Tensor<float> dx(2);
  linear_backward(stream, x.view(1, 2), weight.view(1, 2), dy.view(1, 1), dx.view(1, 2), {}, {});
  expect_near("dx", dx, {30, 40}, 0);
}

TEST(Linear, RefusesShapesThatDoNotFit) {
  Stream stream;
  Tensor<float> x(6, 0.0F);
  Tensor<float> y(4, 0.0F);
  EXPECT_THROW(linear_forward(stream, x.view(2, 3), x.view(3, 2), {}, y.view(2, 2)), InternalError);
  EXPECT_THROW(linear_forward(stream, x.view(2, 3), x.view(2, 3), x.view(), y.view(2, 2)), InternalError);
}

}  // namespace
}  // namespace pkmesh
