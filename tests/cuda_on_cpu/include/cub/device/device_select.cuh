// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cub/device/temporary.h"

namespace cub {

struct DeviceSelect {
  template <class In, class Out, class Number, class Condition>
  static cudaError_t If(void* temporary, size_t& bytes, In in, Out out, Number* number, int64_t count,
                        Condition condition, cudaStream_t stream = nullptr) {
    return with_temporary(temporary, bytes, stream, [=] {
      Number selected = 0;
      for (int64_t i = 0; i < count; ++i)
        if (const auto item = in[i]; condition(item)) out[selected++] = item;
      *number = selected;
    });
  }
};

}  // namespace cub
