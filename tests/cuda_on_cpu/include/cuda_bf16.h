// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "runtime/bf16.h"

using __nv_bfloat16 = pkmesh::bf16;
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return __nv_bfloat16(x);
}
