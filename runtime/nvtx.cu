// SPDX-License-Identifier: Apache-2.0
// The CUDA side of range.cpp: ranges as NVIDIA's profilers know them. Next to nothing happens where none listens.
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <string_view>

namespace pkmesh::cuda {

void push_range(std::string_view name) {
  char text[64];  // NVTX wants a zero at the end
  const size_t length = std::min(name.size(), sizeof(text) - 1);
  std::copy_n(name.data(), length, text);
  text[length] = 0;
  nvtxRangePushA(text);
}

void pop_range() {
  nvtxRangePop();
}

}  // namespace pkmesh::cuda
