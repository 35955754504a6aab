// SPDX-License-Identifier: Apache-2.0
#include "layers/gelu.h"
#include "layers/silu_gate.h"
#include "tests/reference/dense.h"
#include "tests/reference/tensor.h"

namespace pkmesh {
namespace {

using namespace reference;
constexpr double kTolerance = 1e-6;

const std::vector<std::array<int64_t, 2>> kShapes = {{0, 4}, {1, 1}, {3, 7}, {5, 33}, {129, 129}};

TEST(Gelu, ForwardAndBackward) {
  Stream stream;
  for (const auto& [tokens, width] : kShapes) {
    const Numbers x = normals("x", tokens * width, 3.0);
    const Numbers dy = normals("dy", tokens * width);
    Tensor<float> x_float(x);
    Tensor<float> dy_float(dy);
    Tensor<float> y(tokens * width);
    Tensor<float> dx(tokens * width);
    gelu_forward(stream, x_float.view(tokens, width), y.view(tokens, width));
    gelu_backward(stream, x_float.view(tokens, width), dy_float.view(tokens, width), dx.view(tokens, width));
    expect_near("y", y, gelu(x), kTolerance);
    expect_gradient(
        "dx", dx, x, [&](const Numbers& at) { return dot(gelu(at), dy); }, kTolerance);
  }
}

TEST(Gelu, InPlace) {
  Stream stream;
  const Numbers x = normals("x", 100);
  Tensor<float> in_place(x);
  gelu_forward(stream, in_place.view(10, 10), in_place.view(10, 10));
  expect_near("y", in_place, gelu(x), kTolerance);
  Tensor<float> x_float(x);
  Tensor<float> dx(Numbers(100, 1.0));
  gelu_backward(stream, x_float.view(10, 10), dx.view(10, 10), dx.view(10, 10));
  const Numbers ones(100, 1.0);
  expect_gradient(
      "dx", dx, x, [&](const Numbers& at) { return dot(gelu(at), ones); }, kTolerance);
}

TEST(Gelu, FarOut) {
  Stream stream;
  Tensor<float> x(Numbers{-1e30, -100, -20, 20, 100, 1e18});
  Tensor<float> y(6);
  gelu_forward(stream, x.view(1, 6), y.view(1, 6));
  expect_near("y", y, {0, 0, 0, 20, 100, 1e18}, 1e-6);
}

TEST(SiluGate, ForwardAndBackward) {
  Stream stream;
  for (const auto& [tokens, width] : kShapes) {
    const int64_t count = tokens * width;
    const Numbers y = normals("y", count);
    const Numbers gate = normals("gate", count, 3.0);
    const Numbers dz = normals("dz", count);
    Tensor<float> y_float(y);
    Tensor<float> gate_float(gate);
    Tensor<float> dz_float(dz);
    Tensor<float> z(count);
    Tensor<float> dy(count);
    silu_gate_forward(stream, y_float.view(tokens, width), gate_float.view(tokens, width), z.view(tokens, width));
    silu_gate_backward(stream, y_float.view(tokens, width), gate_float.view(tokens, width),
                       dz_float.view(tokens, width), dy.view(tokens, width), dz_float.view(tokens, width));
    Tensor<float>& dgate = dz_float;  // written in place
    expect_near("z", z, silu_gate(y, gate), kTolerance);
    expect_gradient(
        "dy", dy, y, [&](const Numbers& at) { return dot(silu_gate(at, gate), dz); }, kTolerance);
    expect_gradient(
        "dgate", dgate, gate, [&](const Numbers& at) { return dot(silu_gate(y, at), dz); }, kTolerance);
  }
}

}  // namespace
}  // namespace pkmesh
