// SPDX-License-Identifier: Apache-2.0
// Random inputs for tests of kernels, the same in each run.
#pragma once

#include <string_view>
#include <vector>

#include "runtime/random.h"

namespace pkmesh::reference {

class Draw {
 public:
  explicit Draw(std::string_view name) : random_(21, name) {}
  uint32_t below(int64_t bound) { return random_.bits(at_++) % static_cast<uint32_t>(bound); }
  template <class T = float>
  std::vector<T> integers(int64_t count, int bound) {  // in [-bound, bound]
    std::vector<T> values;
    for (int64_t i = 0; i < count; ++i)
      values.push_back(T(static_cast<float>(static_cast<int>(below(2 * bound + 1)) - bound)));
    return values;
  }
  std::vector<float> normals(int64_t count) {
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i) values.push_back(random_.normal(at_++));
    return values;
  }

 private:
  Random random_;
  uint64_t at_ = 0;
};

}  // namespace pkmesh::reference
