// SPDX-License-Identifier: Apache-2.0
// The tiles are plain loops here, as in every program without AMX. On a CPU that has it, it must give the same bits.
#include "layers/gemm_tiles.h"

#include <cmath>
#include <limits>

#include "layers/matrix_tiles.h"
#include "runtime/bf16.h"
#include "tests/reference/dense.h"
#include "tests/reference/tensor.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

using namespace reference;

// The sum of the parts of element `k` of a panel's line.
template <int kParts>
double unpacked(const std::vector<uint32_t>& panel, cpu::Operand operand, int64_t line, int64_t k) {
  const int64_t step = k / cpu::kPanel * cpu::panel_words<kParts>(cpu::kPanel);
  const int64_t pair = k % cpu::kTileEdge;
  const int64_t row = operand == cpu::Operand::kLeft ? line % cpu::kTileEdge : pair;
  const int64_t word = operand == cpu::Operand::kLeft ? pair : line % cpu::kTileEdge;
  double sum = 0;
  for (int64_t part = 0; part < kParts; ++part) {
    const int64_t tile = step + (2 * part + line / cpu::kTileEdge) * cpu::kTileWords;
    const uint32_t both = panel[static_cast<size_t>(tile + row * cpu::kTileEdge + word)];
    sum += std::bit_cast<float>(k % cpu::kPanel < cpu::kTileEdge ? both << 16 : both & 0xFFFF0000U);
  }
  return sum;
}

template <int kParts, cpu::Operand kOperand>
void expect_parts_to_add_up(bool inner_together, int64_t lines, int64_t inner) {
  const int64_t stride = (inner_together ? inner : lines) + 3;
  Numbers numbers = normals("panel", (inner_together ? lines : inner) * stride);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = std::ldexp(numbers[i], static_cast<int>(i % 201) - 100);
  Tensor<float> source(numbers);
  std::vector<uint32_t> panel(static_cast<size_t>(cpu::panel_words<kParts>(inner)), 0xFFFFFFFFU);
  cpu::pack_panel<kParts, kOperand>({source.data(), stride, inner_together, lines, inner}, panel.data());
  const int64_t filled = (inner + cpu::kPanel - 1) / cpu::kPanel * cpu::kPanel;
  for (int64_t line = 0; line < cpu::kPanel; ++line)
    for (int64_t k = 0; k < filled; ++k) {
      float expected = 0.0F;
      if (line < lines && k < inner) expected = source.data()[inner_together ? line * stride + k : k * stride + line];
      if (kParts == cpu::kBrainFloat) expected = static_cast<float>(bf16(expected));
      ASSERT_EQ(unpacked<kParts>(panel, kOperand, line, k), expected) << line << " " << k;
    }
}

TEST(MatrixTiles, PartsOfAPanelAddUpToItsNumbers) {
  for (const bool inner_together : {false, true})
    for (const int64_t lines : {1, 17, 32})
      for (const int64_t inner : {1, 16, 32, 45, 96}) {
        using enum cpu::Operand;
        expect_parts_to_add_up<cpu::kSingle, kLeft>(inner_together, lines, inner);
        expect_parts_to_add_up<cpu::kSingle, kRight>(inner_together, lines, inner);
        expect_parts_to_add_up<cpu::kBrainFloat, kLeft>(inner_together, lines, inner);
        expect_parts_to_add_up<cpu::kBrainFloat, kRight>(inner_together, lines, inner);
      }
}

struct Case {
  int64_t m, n, k;
  float alpha, beta;
  bool bias;
};

// A product of one case, in every way that it may lie in memory.
class GemmOnTiles {
 public:
  GemmOnTiles(const Case& one, Math math) : one_(one), math_(math) {
    const auto rounded = [&](const char* name, int64_t count) {
      Numbers numbers = normals(name, count);
      for (double& number : numbers)
        number =
            math == Math::kBf16 ? static_cast<float>(bf16(static_cast<float>(number))) : static_cast<float>(number);
      return numbers;
    };
    a_ = rounded("a", one.m * one.k);
    b_ = rounded("b", one.k * one.n);
    bias_ = normals("bias", one.bias ? one.n : 0);
    before_ = normals("c", one.m * width());
    expected_ = product(a_, false, b_, false, one.m, one.n, one.k);
    Numbers a_sizes = a_;
    Numbers b_sizes = b_;
    for (Numbers* numbers : {&a_sizes, &b_sizes})
      for (double& number : *numbers) number = std::abs(number);
    magnitude_ = product(a_sizes, false, b_sizes, false, one.m, one.n, one.k);
  }

  void check(bool a_flips, bool b_flips) const {
    Tensor<float> first(one_.m * width());
    multiply(cpu::gemm_on_tiles, a_flips, b_flips, 1, first);
    for (int64_t i = 0; i < one_.m; ++i) {
      for (int64_t j = 0; j < one_.n; ++j) expect_right(i, j, first.data()[i * width() + j]);
      for (int64_t j = one_.n; j < width(); ++j)
        ASSERT_EQ(first.data()[i * width() + j], static_cast<float>(before_[static_cast<size_t>(i * width() + j)]));
    }
    Tensor<float> again(one_.m * width());
    for (const int threads : {2, 5}) {
      multiply(cpu::gemm_on_tiles, a_flips, b_flips, threads, again);
      EXPECT_TRUE(same_bits(first, again)) << threads << " threads";
    }
    if (cpu_level() != CpuLevel::kAmx) return;
    multiply(cpu_avx512::gemm_on_tiles, a_flips, b_flips, 2, again);
    EXPECT_TRUE(same_bits(first, again)) << "AMX";
  }

 private:
  int64_t width() const { return one_.n + 3; }

  static Numbers flipped(const Numbers& x, int64_t rows, int64_t columns) {
    Numbers y(x.size());
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        y[static_cast<size_t>(j * rows + i)] = x[static_cast<size_t>(i * columns + j)];
    return y;
  }

  void multiply(decltype(cpu::gemm_on_tiles)* kernel, bool a_flips, bool b_flips, int threads, Tensor<float>& c) const {
    const auto& [m, n, k, alpha, beta, with_bias] = one_;
    Tensor<float> a(a_flips ? flipped(a_, m, k) : a_);
    Tensor<float> b(b_flips ? flipped(b_, k, n) : b_);
    Tensor<float> bias(bias_);
    for (size_t i = 0; i < before_.size(); ++i) {
      const bool is_output = static_cast<int64_t>(i) % width() < n;
      c.data()[i] =
          beta == 0.0F && is_output ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(before_[i]);
    }
    const ThreadScope scope(threads);
    Stream stream;
    kernel(stream, math_, a_flips ? Transpose::kYes : Transpose::kNo, b_flips ? Transpose::kYes : Transpose::kNo, alpha,
           a_flips ? a.view(k, m) : a.view(m, k), b_flips ? b.view(n, k) : b.view(k, n), bias.view(), beta,
           MatrixSlice(c.data(), m, n, width()));
  }

  void expect_right(int64_t i, int64_t j, float actual) const {
    const auto at = static_cast<size_t>(i * one_.n + j);
    const double before = one_.beta * before_[static_cast<size_t>(i * width() + j)];
    const double bias = one_.bias ? bias_[static_cast<size_t>(j)] : 0.0;
    const double expected = one_.alpha * expected_[at] + before + bias;
    const double magnitude = one_.alpha * magnitude_[at] + std::abs(before) + std::abs(bias);
    ASSERT_LE(std::abs(actual - expected), 0x1p-22 * magnitude) << i << ", " << j << ": " << actual;
  }

  Case one_;
  Math math_;
  Numbers a_, b_, bias_, before_, expected_, magnitude_;
};

// Edges of panels, more panels than a piece or a shared block has, and inner dimensions of more than one block.
TEST(GemmOnTiles, EqualsSumsInDouble) {
  for (const Case& one :
       {Case{1, 1, 1, 1, 0, false}, Case{32, 64, 32, 1, 0, false}, Case{33, 31, 45, 1, 1, false},
        Case{129, 195, 301, 0.5F, 2, false}, Case{67, 2113, 33, 1, 0, true}, Case{2113, 67, 35, 1, 1, false},
        Case{35, 97, 2111, 1, 0, true}, Case{64, 32, 1024, 1, 1, false}})
    for (const Math math : {Math::kFp32, Math::kBf16}) {
      const GemmOnTiles product(one, math);
      for (int flips = 0; flips < 4; ++flips) {
        SCOPED_TRACE(testing::Message() << one.m << " x " << one.n << " x " << one.k << ", " << flips);
        product.check((flips & 1) != 0, (flips & 2) != 0);
      }
    }
}

TEST(GemmOnTiles, NoNumberHidesOneThatIsNotFinite) {
  constexpr int64_t kSize = 40;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::bit_cast<float>(0x7FFFFFFFU),
                          std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()})
    for (const Math math : {Math::kFp32, Math::kBf16}) {
      Tensor<float> a(normals("a", kSize * kSize));
      Tensor<float> b(normals("b", kSize * kSize));
      Tensor<float> c(kSize * kSize);
      a.data()[5 * kSize + 7] = bad;
      Stream stream;
      cpu::gemm_on_tiles(stream, math, Transpose::kNo, Transpose::kNo, 1.0F, a.view(kSize, kSize), b.view(kSize, kSize),
                         {}, 0.0F, c.view(kSize, kSize));
      for (int64_t i = 0; i < kSize * kSize; ++i)
        EXPECT_EQ(std::isfinite(c.data()[i]), i / kSize != 5) << bad << " " << i;
    }
}

}  // namespace
}  // namespace pkmesh
