// SPDX-License-Identifier: Apache-2.0
#include "runtime/cache.h"

#include <unistd.h>

namespace pkmesh {

int64_t second_level_cache() {
  static const int64_t bytes = [] {
    const int64_t said = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return said > 0 ? said : int64_t{1} << 20;
  }();
  return bytes;
}

}  // namespace pkmesh
