// SPDX-License-Identifier: Apache-2.0
// IEEE 754 half precision: 5 bits of exponent, 10 of fraction. Storage only; arithmetic is in fp32. The same bits on
// every device and compiler, and loops over it vectorise.
#pragma once

#include <bit>
#include <cstdint>

#include "runtime/host_device.h"

namespace pkmesh {

struct fp16 {
  uint16_t bits = 0;

  fp16() = default;
  // Round to nearest, ties to even; beyond 65504 infinity; a NaN stays one.
  PKM_HOST_DEVICE explicit fp16(float value) {
    const auto u = std::bit_cast<uint32_t>(value);
    const uint32_t magnitude = u & 0x7FFFFFFFU;
    // Below 2^-14 the steps are 2^-24 whatever the exponent: adding 0.5 puts them at the end of the float's fraction.
    const auto small = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - kHalf;
    const uint32_t normal = (magnitude + 0xFFFU + ((magnitude >> 13) & 1U) - kRebias) >> 13;
    bits = static_cast<uint16_t>((u >> 16 & 0x8000U) | pick(magnitude, small, normal));
  }
  PKM_HOST_DEVICE explicit operator float() const {
    const uint32_t magnitude = (bits & 0x7FFFU) << 13;
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
    // The exponent's bias differs by 112; a multiplication also normalises what is below 2^-14.
    const auto scaled = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112F);
    return std::bit_cast<float>(sign | (magnitude < kInfinite ? scaled : magnitude | 0x7F800000U));
  }

  // Rounds away from zero with the probability that the 16 random bits give: unbiased in the mean. Finite values only,
  // and none becomes infinite: what is beyond 65504 is 65504.
  PKM_HOST_DEVICE static fp16 stochastic(float value, uint32_t random16) {
    const auto u = std::bit_cast<uint32_t>(value);
    const uint32_t magnitude = u & 0x7FFFFFFFU;
    const float steps = std::bit_cast<float>(magnitude < kSmallestNormal ? magnitude : 0U) * 0x1p24F;  // < 1024, exact
    const auto whole = static_cast<int32_t>(steps);
    const float rest = (steps - static_cast<float>(whole)) * 0x1p16F;
    const uint32_t small = static_cast<uint32_t>(whole) + (rest > static_cast<float>(random16 & 0xFFFFU) ? 1U : 0U);
    const uint32_t normal = (magnitude + ((random16 & 0xFFFFU) >> 3) - kRebias) >> 13;
    fp16 result;
    const uint32_t rounded = pick(magnitude, small, normal);
    result.bits = static_cast<uint16_t>((u >> 16 & 0x8000U) | (rounded < kLargest ? rounded : kLargest));
    return result;
  }
  friend bool operator==(fp16, fp16) = default;

 private:
  static constexpr uint32_t kHalf = 0x3F000000U;           // 0.5F
  static constexpr uint32_t kRebias = 112U << 23;          // between the exponents of float and fp16
  static constexpr uint32_t kSmallestNormal = 113U << 23;  // 2^-14
  static constexpr uint32_t kBeyond = 143U << 23;          // 2^16
  static constexpr uint32_t kLargest = 0x7BFFU;            // 65504, as an fp16
  static constexpr uint32_t kInfinite = 0x7C00U << 13;     // an fp16's, where a float has its fraction and exponent

  // Of a float's magnitude, rounded as a subnormal or as a normal number, the one that it is.
  PKM_HOST_DEVICE static uint32_t pick(uint32_t magnitude, uint32_t small, uint32_t normal) {
    const uint32_t finite = magnitude < kSmallestNormal ? small : normal;
    const uint32_t beyond = magnitude > 0x7F800000U ? 0x7E00U : 0x7C00U;
    return magnitude < kBeyond ? finite : beyond;
  }
};

}  // namespace pkmesh
