// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "runtime/fp16.h"

using __half = pkmesh::fp16;
inline __half __float2half_rn(float x) {
  return __half(x);
}
inline float __half2float(__half x) {
  return static_cast<float>(x);
}
inline unsigned short __half_as_ushort(__half x) {
  return x.bits;
}
inline __half __ushort_as_half(unsigned short bits) {
  __half x;
  x.bits = bits;
  return x;
}
