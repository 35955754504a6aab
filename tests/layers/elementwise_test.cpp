// SPDX-License-Identifier: Apache-2.0
#include "layers/elementwise.h"

#include "tests/reference/tensor.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

using namespace reference;

const std::vector<int64_t> kCounts = {0, 1, 7, 4096, 4097, 70001};

TEST(Elementwise, FillAdd) {
  Stream stream;
  for (const int64_t count : kCounts) {
    const Numbers a = normals("a", count);
    const Numbers b = normals("b", count);
    Numbers expected = a;
    for (size_t i = 0; i < a.size(); ++i) expected[i] = a[i] + b[i];
    Tensor<float> a_float(a);
    Tensor<float> b_float(b);
    add(stream, a_float.view(), b_float.view(), a_float.view());
    expect_near("y", a_float, expected, 1e-7);
    fill(stream, a_float.view(), 3.0F);
    expect_near("filled", a_float, Numbers(a.size(), 3.0), 0);
  }
}

TEST(Elementwise, NarrowsToTheNearestAndWidensExactly) {
  Stream stream;
  for (const int64_t count : kCounts) {
    Tensor<float> x(normals("x", count));
    Tensor<bf16> narrowed(count);
    Tensor<float> widened(count);
    narrow(stream, x.view(), narrowed.view());
    widen(stream, narrowed.view(), widened.view());
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(narrowed.view()[i], bf16(x.view()[i])) << i;
      ASSERT_EQ(widened.view()[i], static_cast<float>(narrowed.view()[i])) << i;
    }
  }
}

TEST(Elementwise, SumsAccumulateAndDoNotDependOnTheThreads) {
  Stream stream;
  for (const int64_t count : kCounts) {
    const Numbers x = normals("x", count);
    Tensor<float> x_float(x);
    std::vector<double> sums;
    std::vector<double> squares;
    for (const int n : {1, 2, 3, 1}) {
      const ThreadScope scope(n);
      Tensor<double> total(Numbers{10, 20});
      add_sum(stream, x_float.view(), total.view().rows(0, 1));
      add_sum_of_squares(stream, x_float.view(), total.view().rows(1, 2));
      sums.push_back(total.data()[0]);
      squares.push_back(total.data()[1]);
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      EXPECT_EQ(sums[i], sums[0]);
      EXPECT_EQ(squares[i], squares[0]);
    }
    EXPECT_NEAR(sums[0], 10 + std::accumulate(x.begin(), x.end(), 0.0), 1e-9);
    EXPECT_NEAR(squares[0], 20 + dot(x, x), 1e-8);
  }
}

TEST(Elementwise, SquaresDoNotOverflow) {
  Stream stream;
  Tensor<float> x(3, 1e30F);
  Tensor<double> total(1, 0.0);
  add_sum_of_squares(stream, x.view(), total.view());
  EXPECT_NEAR(total.data()[0] / 3e60, 1.0, 1e-6);
}

}  // namespace
}  // namespace pkmesh
