// SPDX-License-Identifier: Apache-2.0
// What the judges share: tensors as flat vectors of doubles, and gradients by finite differences.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string_view>
#include <vector>

#include "runtime/random.h"

namespace pkmesh::reference {

using Numbers = std::vector<double>;  // row-major

// Normal numbers that are floats exactly, so that an op and its judge start from the same input.
inline Numbers normals(std::string_view name, int64_t count, double scale = 1.0) {
  const Random random(1, name);
  Numbers numbers(static_cast<size_t>(count));
  for (size_t i = 0; i < numbers.size(); ++i)
    numbers[i] = static_cast<float>(static_cast<double>(random.normal(i)) * scale);
  return numbers;
}

inline double dot(const Numbers& a, const Numbers& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// The derivative of f along coordinate i, by central differences: error about 1e-9 for smooth f of size 1.
inline double derivative(const std::function<double(const Numbers&)>& f, Numbers at, size_t i, double step = 1e-5) {
  const double middle = at[i];
  at[i] = middle + step;
  const double above = f(at);
  at[i] = middle - step;
  return (above - f(at)) / (2 * step);
}

}  // namespace pkmesh::reference
