// SPDX-License-Identifier: Apache-2.0
#include "comm/share.h"

#include <algorithm>

#include "runtime/check.h"

namespace pkmesh {

int64_t total(std::span<const Share> shares) {
  int64_t total = 0;
  for (const Share& share : shares) total += share.count();
  return total;
}

Share share_of(int64_t count, int rank, int size) {
  constexpr int64_t kBlock = 4096;
  PKM_CHECK(0 <= rank && rank < size, "rank {} of {}", rank, size);
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  const auto cut = [&](int64_t part) { return std::min(count, blocks * part / size * kBlock); };
  return {cut(rank), cut(rank + 1)};
}

}  // namespace pkmesh
