// SPDX-License-Identifier: Apache-2.0
// In namespace cpu the tiles are plain loops, which run anywhere. On a CPU with AMX it must give the same bits.
#include "layers/gemm_tiles.h"

#include <cmath>
#include <limits>

#include "runtime/bf16.h"
#include "runtime/buffer.h"
#include "runtime/matrix_tiles.h"
#include "tests/reference/dense.h"
#include "tests/reference/tensor.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace cpu_avx512 {
[[gnu::weak]] decltype(cpu::gemm_on_tiles) gemm_on_tiles;
}
namespace {

using namespace reference;

// The sum of the parts of element `k` of a panel's line.
template <int kParts>
double unpacked(const Buffer<uint32_t>& panel, cpu::tiles::Operand operand, int64_t line, int64_t k) {
  const int64_t step = k / cpu::tiles::kPanel * cpu::tiles::panel_words<kParts>(cpu::tiles::kPanel);
  const int64_t pair = k % cpu::tiles::kTileEdge;
  const int64_t row = operand == cpu::tiles::Operand::kLeft ? line % cpu::tiles::kTileEdge : pair;
  const int64_t word = operand == cpu::tiles::Operand::kLeft ? pair : line % cpu::tiles::kTileEdge;
  double sum = 0;
  for (int64_t part = 0; part < kParts; ++part) {
    const int64_t tile = step + (2 * part + line / cpu::tiles::kTileEdge) * cpu::tiles::kTileWords;
    const uint32_t both = panel.data()[tile + row * cpu::tiles::kTileEdge + word];
    sum += std::bit_cast<float>(k % cpu::tiles::kPanel < cpu::tiles::kTileEdge ? both << 16 : both & 0xFFFF0000U);
  }
  return sum;
}

template <int kParts, cpu::tiles::Operand kOperand>
void expect_parts_to_add_up(bool inner_together, int64_t lines, int64_t inner) {
  const int64_t stride = (inner_together ? inner : lines) + 3;
  Numbers numbers = normals("panel", (inner_together ? lines : inner) * stride);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = std::ldexp(numbers[i], static_cast<int>(i % 201) - 100);
  Tensor<float> source(numbers);
  const Buffer<uint32_t> panel({}, cpu::tiles::panel_words<kParts>(inner));
  std::ranges::fill(panel.span(), 0xFFFFFFFFU);
  cpu::tiles::pack_panel<kParts, kOperand>({source.data(), stride, inner_together, lines, inner}, panel.data());
  const int64_t filled = (inner + cpu::tiles::kPanel - 1) / cpu::tiles::kPanel * cpu::tiles::kPanel;
  for (int64_t line = 0; line < cpu::tiles::kPanel; ++line)
    for (int64_t k = 0; k < filled; ++k) {
      float expected = 0.0F;
      if (line < lines && k < inner) expected = source.data()[inner_together ? line * stride + k : k * stride + line];
      if (kParts == cpu::tiles::kBf16Parts) expected = static_cast<float>(bf16(expected));
      ASSERT_EQ(unpacked<kParts>(panel, kOperand, line, k), expected) << line << " " << k;
    }
}

TEST(MatrixTiles, PartsOfAPanelAddUpToItsNumbers) {
  for (const bool inner_together : {false, true})
    for (const int64_t lines : {1, 17, 32})
      for (const int64_t inner : {1, 16, 32, 45, 96}) {
        using enum cpu::tiles::Operand;
        expect_parts_to_add_up<cpu::tiles::kFp32Parts, kLeft>(inner_together, lines, inner);
        expect_parts_to_add_up<cpu::tiles::kFp32Parts, kRight>(inner_together, lines, inner);
        expect_parts_to_add_up<cpu::tiles::kBf16Parts, kLeft>(inner_together, lines, inner);
        expect_parts_to_add_up<cpu::tiles::kBf16Parts, kRight>(inner_together, lines, inner);
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
  }

  void check_amx(bool a_flips, bool b_flips) const {
    Tensor<float> in_loops(one_.m * width());
    Tensor<float> on_tiles(one_.m * width());
    multiply(cpu::gemm_on_tiles, a_flips, b_flips, 2, in_loops);
    multiply(cpu_avx512::gemm_on_tiles, a_flips, b_flips, 2, on_tiles);
    EXPECT_TRUE(same_bits(in_loops, on_tiles));
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
    // 32 terms are six roundings of the sum, each of up to 2^-24.
    ASSERT_LE(std::abs(actual - expected), 0x1p-21 * magnitude) << i << ", " << j << ": " << actual;
  }

  Case one_;
  Math math_;
  Numbers a_, b_, bias_, before_, expected_, magnitude_;
};

// Edges of panels, more panels than a piece or a shared block has, and inner dimensions of more than one block. alpha
// and beta are powers of two, so that it does not matter whether a compiler fuses them with the sum.
const std::vector<Case> kCases = {
    {1, 1, 1, 1, 0, false},          {32, 64, 32, 1, 0, false},   {33, 31, 45, 1, 1, false},
    {129, 195, 601, 0.5F, 2, false}, {67, 2113, 33, 1, 0, true},  {2113, 67, 35, 1, 1, false},
    {35, 97, 2111, 1, 0, true},      {64, 32, 1024, 1, 1, false}, {45, 70, 2111, 0.5F, 2, false}};
const Case kManyPanels[] = {{2081, 2084, 16, 1, 1, false}, {2084, 2081, 16, 1, 1, false}};

template <class Check>
void for_all_products(const Check& check) {
  for (const Math math : {Math::kFp32, Math::kBf16})
    for (const Case& one : kCases) {
      const GemmOnTiles product(one, math);
      for (int flips = 0; flips < 4; ++flips) {
        SCOPED_TRACE(testing::Message() << one.m << " x " << one.n << " x " << one.k << ", " << flips);
        check(product, (flips & 1) != 0, (flips & 2) != 0);
      }
    }
  for (const Case& one : kManyPanels) check(GemmOnTiles(one, Math::kFp32), false, true);
}

TEST(GemmOnTiles, EqualsSumsInDouble) {
  for_all_products([](const GemmOnTiles& product, bool a_flips, bool b_flips) { product.check(a_flips, b_flips); });
}

TEST(GemmOnTiles, AmxGivesTheSameBitsAsLoops) {
  if (cpu_level() != CpuLevel::kAmx) GTEST_SKIP() << "this CPU has no matrix tiles, or PKMESH_CPU forbids them";
  for_all_products([](const GemmOnTiles& product, bool a_flips, bool b_flips) { product.check_amx(a_flips, b_flips); });
}

// One sum over all of them would be several times as far off as sums of 512, which are added up here.
TEST(GemmOnTiles, LongSumsAreAddedUpInBlocks) {
  constexpr int64_t kSize = 64;
  constexpr int64_t kInner = 16384;
  Tensor<float> a(normals("a", kSize * kInner));
  Tensor<float> b(normals("b", kInner * kSize));
  Tensor<float> c(kSize * kSize);
  Stream stream;
  cpu::gemm_on_tiles(stream, Math::kFp32, Transpose::kNo, Transpose::kNo, 1.0F, a.view(kSize, kInner),
                     b.view(kInner, kSize), {}, 0.0F, c.view(kSize, kSize));
  double worst = 0;
  for (int64_t i = 0; i < kSize; ++i)
    for (int64_t j = 0; j < kSize; ++j) {
      double expected = 0;
      double magnitude = 0;
      for (int64_t k = 0; k < kInner; ++k) {
        const double term = static_cast<double>(a.data()[i * kInner + k]) * b.data()[k * kSize + j];
        expected += term;
        magnitude += std::abs(term);
      }
      worst = std::max(worst, std::abs(c.data()[i * kSize + j] - expected) / magnitude);
    }
  EXPECT_LT(worst, 0x1p-26);
}

TEST(GemmOnTiles, NoNumberHidesOneThatIsNotFinite) {
  constexpr int64_t kSize = 40;
  std::vector kernels = {&cpu::gemm_on_tiles};
  if (cpu_level() == CpuLevel::kAmx) kernels.push_back(&cpu_avx512::gemm_on_tiles);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::bit_cast<float>(0x7FFFFFFFU),
                          std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()})
    for (int which = 0; which < 4; ++which)
      for (auto* const kernel : kernels) {
        const Math math = (which & 1) != 0 ? Math::kFp32 : Math::kBf16;
        const bool in_a = (which & 2) != 0;
        Tensor<float> a(normals("a", kSize * kSize));
        Tensor<float> b(normals("b", kSize * kSize));
        Tensor<float> c(kSize * kSize);
        (in_a ? a : b).data()[5 * kSize + 7] = bad;
        Stream stream;
        kernel(stream, math, Transpose::kNo, Transpose::kNo, 1.0F, a.view(kSize, kSize), b.view(kSize, kSize), {}, 0.0F,
               c.view(kSize, kSize));
        for (int64_t i = 0; i < kSize * kSize; ++i)
          EXPECT_EQ(std::isfinite(c.data()[i]), in_a ? i / kSize != 5 : i % kSize != 7) << bad << " " << i;
      }
}

}  // namespace
}  // namespace pkmesh
