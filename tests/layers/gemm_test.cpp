// SPDX-License-Identifier: Apache-2.0
#include "layers/gemm.h"

#include "tests/reference/dense.h"
#include "tests/reference/tensor.h"

namespace pkmesh {
namespace {

using namespace reference;
constexpr double kTolerance = 1e-5;

Transpose transpose(bool yes) {
  return yes ? Transpose::kYes : Transpose::kNo;
}

TEST(Gemm, EveryTransposeAndShape) {
  Stream stream;
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {3, 5, 7}, {65, 33, 17}, {0, 4, 3}, {4, 0, 3}, {4, 3, 0}, {0, 0, 0}}) {
    for (int flips = 0; flips < 4; ++flips) {
      const bool a_flips = (flips & 1) != 0;
      const bool b_flips = (flips & 2) != 0;
      const Numbers a = normals("a", m * k);
      const Numbers b = normals("b", k * n);
      const Numbers before = normals("c", m * n);
      Numbers expected = product(a, a_flips, b, b_flips, m, n, k);
      for (size_t i = 0; i < expected.size(); ++i) expected[i] = 0.5 * expected[i] + 2 * before[i];
      Tensor<float> a_float(a);
      Tensor<float> b_float(b);
      Tensor<float> c(before);
      gemm(stream, transpose(a_flips), transpose(b_flips), 0.5F, a_flips ? a_float.view(k, m) : a_float.view(m, k),
           b_flips ? b_float.view(n, k) : b_float.view(k, n), 2.0F, c.view(m, n));
      expect_near("c", c, expected, kTolerance);
    }
  }
}

TEST(Gemm, BetaZeroForgetsWhatWasThere) {
  Stream stream;
  Tensor<float> c(6);  // NaN
  Tensor<float> nothing(0);
  gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, nothing.view(2, 0), nothing.view(0, 3), 0.0F, c.view(2, 3));
  expect_near("c", c, Numbers(6, 0.0), 0.0);
}

TEST(Gemm, SlicesTouchTheirColumnsOnly) {
  Stream stream;
  const Numbers a = normals("a", 4 * 10);
  const Numbers b = normals("b", 3 * 2);
  Tensor<float> a_float(a);
  Tensor<float> b_float(b);
  Tensor<float> c(4 * 5, 7.0F);
  gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, columns_of(Matrix<const float>(a_float.view(4, 10)), 6, 9),
       b_float.view(3, 2), 0.0F, columns_of(c.view(4, 5), 1, 3));
  Numbers expected(4 * 5, 7.0);
  for (size_t i = 0; i < 4; ++i)
    for (size_t j = 0; j < 2; ++j) {
      expected[i * 5 + 1 + j] = 0;
      for (size_t l = 0; l < 3; ++l) expected[i * 5 + 1 + j] += a[i * 10 + 6 + l] * b[l * 2 + j];
    }
  expect_near("c", c, expected, kTolerance);
}

TEST(Gemm, RefusesShapesThatDoNotFit) {
  Stream stream;
  Tensor<float> a(6, 0.0F);
  Tensor<float> b(6, 0.0F);
  Tensor<float> c(4, 0.0F);
  EXPECT_THROW(gemm(stream, Transpose::kNo, Transpose::kYes, 1.0F, a.view(2, 3), b.view(3, 2), 0.0F, c.view(2, 2)),
               InternalError);
  EXPECT_THROW(gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, a.view(2, 3), b.view(3, 2), 0.0F,
                    MatrixSlice<float>(c.data(), 2, 2, 1)),
               InternalError);
  EXPECT_THROW(columns_of(c.view(2, 2), 1, 3), InternalError);
}

}  // namespace
}  // namespace pkmesh
