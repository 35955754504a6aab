// SPDX-License-Identifier: Apache-2.0
#include "layers/gemm.h"

#include <functional>

#include "runtime/bf16.h"
#include "tests/reference/dense.h"
#include "tests/reference/tensor.h"
#include "tests/reference/thread_scope.h"

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

// What a product of float operands is held against.
struct Operands {
  Operands(int64_t m, int64_t n, int64_t k, const std::function<float(double)>& round) {
    for (const double value : normals("a", m * k)) a.push_back(round(value));
    for (const double value : normals("b", k * n)) b.push_back(round(value));
  }
  Numbers a;
  Numbers b;
};

// Sizes at which packing, panels, slabs and threads come in, each odd.
const std::vector<std::array<int64_t, 3>> kLarge = {
    {129, 195, 301}, {67, 2113, 33}, {2113, 67, 35}, {35, 97, 2111}, {256, 192, 128}};

// The largest error of c, in units of the sum of |a b| that each element adds up.
double worst_error(Tensor<float>& c, const Numbers& exact, const Numbers& magnitude) {
  double worst = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double error = std::abs(c.data()[i] - exact[i]) / magnitude[i];
    worst = error <= worst ? worst : error;  // a NaN is the worst
    if (std::isnan(error)) return error;
  }
  return worst;
}

Numbers magnitudes(Numbers numbers) {
  for (double& number : numbers) number = std::abs(number);
  return numbers;
}

// Whichever library multiplies: no worse than adding up in a plain loop, over 40 binary orders of magnitude.
TEST(Gemm, LargeProductsAreAsExactAsALoopInFp32) {
  Stream stream;
  for (const auto& [m, n, k] : kLarge) {
    Operands in(m, n, k, [](double value) { return static_cast<float>(value); });
    for (size_t i = 0; i < in.a.size(); ++i) in.a[i] = std::ldexp(in.a[i], static_cast<int>((i / k + i) % 41) - 20);
    const Numbers exact = product(in.a, false, in.b, false, m, n, k);
    const Numbers magnitude = product(magnitudes(in.a), false, magnitudes(in.b), false, m, n, k);
    Tensor<float> loop(m * n, 0.0F);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t l = 0; l < k; ++l)
        for (int64_t j = 0; j < n; ++j)
          loop.data()[i * n + j] += static_cast<float>(in.a[i * k + l]) * static_cast<float>(in.b[l * n + j]);
    Tensor<float> a(in.a);
    Tensor<float> b(in.b);
    Tensor<float> c(m * n);
    for (const int count : {1, 2}) {
      const ThreadScope scope(count);
      gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, a.view(m, k), b.view(k, n), 0.0F, c.view(m, n));
      // Of another order of the sum than the loop, whose own error is one draw: up to twice as much.
      EXPECT_LE(worst_error(c, exact, magnitude), std::max(2 * worst_error(loop, exact, magnitude), 0x1p-21))
          << m << " x " << n << " x " << k << " on " << count << " threads";
    }
  }
}

TEST(Gemm, LargeProductsOfEveryTransposeAddUp) {
  for (const Math math : {Math::kFp32, Math::kBf16}) {
    Stream stream;
    stream.set_math(math);
    for (const auto& [m, n, k] : kLarge) {
      const Operands in(m, n, k, [&](double value) {
        return math == Math::kBf16 ? static_cast<float>(bf16(static_cast<float>(value))) : static_cast<float>(value);
      });
      const Numbers exact = product(in.a, false, in.b, false, m, n, k);
      const Numbers before = normals("c", m * (n + 3));
      const auto flipped = [](const Numbers& x, int64_t rows, int64_t columns) {
        Numbers y(x.size());
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < columns; ++j) y[j * rows + i] = x[i * columns + j];
        return y;
      };
      for (int which = 0; which < 16; ++which) {
        const ThreadScope scope((which & 8) != 0 ? 2 : 1);
        const bool a_flips = (which & 1) != 0;
        const bool b_flips = (which & 2) != 0;
        const int64_t gap = (which & 4) != 0 ? 3 : 0;
        const int64_t width = n + gap;
        const Numbers start(before.begin(), before.begin() + m * width);
        Numbers expected = start;
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < n; ++j) expected[i * width + j] += exact[i * n + j];
        Tensor<float> a(a_flips ? flipped(in.a, m, k) : in.a);
        Tensor<float> b(b_flips ? flipped(in.b, k, n) : in.b);
        Tensor<float> again(start);
        Tensor<float> c(start);
        for (Tensor<float>* out : {&again, &c})
          gemm(stream, transpose(a_flips), transpose(b_flips), 1.0F, a_flips ? a.view(k, m) : a.view(m, k),
               b_flips ? b.view(n, k) : b.view(k, n), 1.0F, MatrixSlice(out->data(), m, n, width));
        expect_near("c", c, expected, 4 * kTolerance * std::sqrt(static_cast<double>(k) / 100));
        EXPECT_TRUE(same_bits(c, again));
      }
    }
  }
}

// The reference rounds what the op is given in full; a product in fp32 would be off by a hundred times the tolerance.
TEST(Gemm, Bf16RoundsItsOperandsAndNothingElse) {
  Stream stream;
  stream.set_math(Math::kBf16);
  for (const auto& [m, n, k] :
       std::vector<std::array<int64_t, 3>>{{3, 5, 7}, {65, 33, 17}, {4, 3, 0}, {129, 195, 301}}) {
    const Operands full(m, n, k, [](double value) { return static_cast<float>(value); });
    const Operands rounded(m, n, k, [](double value) { return static_cast<float>(bf16(static_cast<float>(value))); });
    Tensor<float> a(full.a);
    Tensor<float> b(full.b);
    Tensor<float> c(m * n);
    gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, a.view(m, k), b.view(k, n), 0.0F, c.view(m, n));
    expect_near("c", c, product(rounded.a, false, rounded.b, false, m, n, k), 2 * kTolerance);
  }
}

TEST(Gemm, ANanStaysOne) {
  for (const Math math : {Math::kFp32, Math::kBf16}) {
    Stream stream;
    stream.set_math(math);
    Tensor<float> a(256 * 256, 1.0F);
    Tensor<float> b(256 * 256, 1.0F);
    Tensor<float> c(256 * 256);
    a.data()[3 * 256 + 100] = std::bit_cast<float>(0x7FFFFFFFU);
    gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, a.view(256, 256), b.view(256, 256), 0.0F, c.view(256, 256));
    for (int64_t i = 0; i < 256 * 256; ++i) ASSERT_EQ(std::isnan(c.data()[i]), i / 256 == 3) << i;
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
  gemm(stream, Transpose::kNo, Transpose::kNo, 1.0F, MatrixSlice(a_float.data() + 6, 4, 3, 10), b_float.view(3, 2),
       0.0F, MatrixSlice(c.data() + 1, 4, 2, 5));
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
}

}  // namespace
}  // namespace pkmesh
