// SPDX-License-Identifier: Apache-2.0
// bfloat16: the upper half of a float. Storage only; arithmetic is in fp32.
#pragma once

#include <bit>
#include <cstdint>

#include "runtime/host_device.h"

namespace pkmesh {

struct bf16 {
  uint16_t bits = 0;

  bf16() = default;
  PKM_HOST_DEVICE explicit bf16(float value) {  // round to nearest, ties to even; a NaN stays one
    const auto u = std::bit_cast<uint32_t>(value);
    bits = (u & 0x7FFFFFFFU) > 0x7F800000U ? static_cast<uint16_t>((u >> 16) | 0x40U)
                                           : static_cast<uint16_t>((u + 0x7FFFU + ((u >> 16) & 1U)) >> 16);
  }
  PKM_HOST_DEVICE explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

  // Rounds up with the probability that the 16 random bits give: unbiased in the mean. Finite values only.
  PKM_HOST_DEVICE static bf16 stochastic(float value, uint32_t random16) {
    bf16 result;
    result.bits = static_cast<uint16_t>((std::bit_cast<uint32_t>(value) + (random16 & 0xFFFFU)) >> 16);
    return result;
  }
  friend bool operator==(bf16, bf16) = default;
};

}  // namespace pkmesh
