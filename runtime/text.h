// SPDX-License-Identifier: Apache-2.0
// Words of lines for people.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace pkmesh {

// "1 rank", "3 ranks"
inline std::string counted(int64_t count, std::string_view what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

}  // namespace pkmesh
