// SPDX-License-Identifier: Apache-2.0
// Tensors for tests of ops: between sentinels, which must be intact when the tensor dies, and compared with the judges.
#pragma once

#include <gtest/gtest.h>

#include <cstring>

#include "runtime/view.h"
#include "tests/reference/numbers.h"

namespace pkmesh::reference {

template <class T = float>
class Tensor {
 public:
  // Outputs begin as NaN (in floats), so that an element that was forgotten is found.
  explicit Tensor(int64_t count, T value = garbage())
      : memory_(static_cast<size_t>(count + 2 * kGuard), sentinel()), count_(count) {
    std::fill_n(data(), count, value);
  }
  Tensor(const Numbers& numbers) : Tensor(static_cast<int64_t>(numbers.size())) {
    std::transform(numbers.begin(), numbers.end(), data(), [](double number) { return static_cast<T>(number); });
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() {
    for (int64_t i = 0; i < kGuard; ++i) {
      EXPECT_EQ(memory_[static_cast<size_t>(i)], sentinel()) << "written " << kGuard - i << " before the tensor";
      EXPECT_EQ(memory_[static_cast<size_t>(kGuard + count_ + i)], sentinel()) << "written " << i << " behind the end";
    }
  }

  T* data() { return memory_.data() + kGuard; }
  template <class... Sizes>
  View<T, sizeof...(Sizes)> view(Sizes... sizes) {
    View<T, sizeof...(Sizes)> view(data(), sizes...);
    EXPECT_EQ(view.count(), count_);
    return view;
  }
  Vector<T> view() { return Vector<T>(data(), count_); }
  std::vector<T> values() { return {data(), data() + count_}; }

 private:
  static constexpr int64_t kGuard = 19;  // odd: what follows is misaligned for vectors on purpose
  static T sentinel() { return static_cast<T>(-123456789); }
  static T garbage() { return std::numeric_limits<T>::has_quiet_NaN ? std::numeric_limits<T>::quiet_NaN() : T{77}; }

  std::vector<T> memory_;
  int64_t count_;
};

// |actual - expected| <= tolerance * max(1, |expected|), element by element.
inline void expect_near(std::string_view what, Tensor<float>& actual, const Numbers& expected, double tolerance) {
  ASSERT_EQ(actual.view().count(), static_cast<int64_t>(expected.size())) << what;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double value = actual.data()[i];
    ASSERT_TRUE(std::abs(value - expected[i]) <= tolerance * std::max(1.0, std::abs(expected[i])))
        << what << "[" << i << "] is " << value << ", expected " << expected[i];
  }
}

// Holds `gradient` (of f at `at`) against finite differences, in at most `samples` coordinates spread over all.
inline void expect_gradient(std::string_view what, Tensor<float>& gradient, const Numbers& at,
                            const std::function<double(const Numbers&)>& f, double tolerance, size_t samples = 150) {
  ASSERT_EQ(gradient.view().count(), static_cast<int64_t>(at.size())) << what;
  const size_t stride = at.size() / samples + 1;
  for (size_t i = 0; i < at.size(); i += stride) {
    const double expected = derivative(f, at, i);
    const double value = gradient.data()[i];
    ASSERT_TRUE(std::abs(value - expected) <= tolerance * std::max(1.0, std::abs(expected)))
        << what << "[" << i << "] is " << value << ", expected " << expected;
  }
}

// True if both hold the same bits (so that NaNs are equal, and +0 is not -0).
inline bool same_bits(Tensor<float>& a, Tensor<float>& b) {
  return a.view().count() == b.view().count() &&
         std::memcmp(a.data(), b.data(), static_cast<size_t>(a.view().count()) * sizeof(float)) == 0;
}

}  // namespace pkmesh::reference
