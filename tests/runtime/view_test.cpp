// SPDX-License-Identifier: Apache-2.0
#include "runtime/view.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace pkmesh {
namespace {

TEST(View, IndexesRowMajorAndSlices) {
  std::vector<int> data(24);
  std::iota(data.begin(), data.end(), 0);
  const View<int, 3> view(data.data(), 2, 3, 4);
  EXPECT_EQ(view(1, 2, 3), 23);
  EXPECT_EQ(view[1](2, 3), 23);
  EXPECT_EQ(view[1][2][3], 23);
  EXPECT_EQ(view.rows(1, 2)(0, 0, 1), 13);
  EXPECT_EQ(view.reshape(6, 4)(5, 3), 23);
  EXPECT_THROW(view.reshape(5, 5), InternalError);
}

TEST(View, ShapeErrorsNameTheDimension) {
  std::vector<float> data(6);
  const Matrix<float> x(data.data(), 2, 3);
  check_shape("x", x, {{"tokens", 2}, {"width", 3}});
  try {
    check_shape("gelu: x", x, {{"tokens", 2}, {"width", 4}});
    FAIL() << "the width is wrong";
  } catch (const InternalError& error) {
    EXPECT_STREQ(error.what(), "gelu: x is (2, 3), expected (tokens=2, width=4)");
  }
}

}  // namespace
}  // namespace pkmesh
