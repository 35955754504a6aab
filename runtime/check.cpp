// SPDX-License-Identifier: Apache-2.0
#include "runtime/check.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace pkmesh {

void detail::fail_check(const char* expression, const char* file, int line, const std::string& message) {
  throw InternalError(fmt::format("{} [{}:{}: check failed: {}]", message, file, line, expression));
}

void check_shape(std::string_view what, std::span<const int64_t> shape, std::initializer_list<Extent> expected) {
  const bool same = std::equal(shape.begin(), shape.end(), expected.begin(), expected.end(),
                               [](int64_t size, const Extent& extent) { return size == extent.size; });
  if (same) return;
  std::string wanted;
  for (const Extent& extent : expected)
    wanted += fmt::format("{}{}={}", wanted.empty() ? "" : ", ", extent.name, extent.size);
  throw InternalError(fmt::format("{} is ({}), expected ({})", what, fmt::join(shape, ", "), wanted));
}

}  // namespace pkmesh
