// SPDX-License-Identifier: Apache-2.0
// Elementary functions that a compiler can vectorise: no branches, no calls, no tables. CPU kernels only.
// A NaN comes out as a NaN, so that a broken step shows in its loss. Coefficients are minimax fits of our own;
// tests/layers/vector_math_test.cpp holds every function against the C library's in double.
#pragma once

#include <bit>
#include <cstdint>

#include "runtime/cpu.h"

namespace pkmesh::PKM_CPU {

// e^x, relative error < 2e-7 on [-87.3, 88]; 0 below (also for -inf); above it stays at e^88 = 1.65e38.
[[gnu::always_inline]] inline float fast_exp(float x) {
  constexpr float kLowest = -87.33F;        // e^x is still a normal number
  constexpr float kRound = 0x1.8p23F;       // adding it rounds to an integer, left in the low bits
  constexpr float kLn2High = 0.693359375F;  // ln 2 in two parts: n * high is exact
  constexpr float kLn2Low = -2.12194440e-4F;
  const float above = x < kLowest ? kLowest : x;
  const float clamped = above > 88.0F ? 88.0F : above;
  const float shifted = clamped * 1.44269504F + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;  // |r| <= ln(2) / 2
  float q = 0.00138145F;
  q = q * r + 0.00836878F;
  q = q * r + 0.04166839F;
  q = q * r + 0.1666652F;
  q = q * r + 0.49999993F;
  const float e_r = 1.0F + (r + r * r * q);
  const auto exponent = std::bit_cast<uint32_t>(shifted) + 127U;  // the rest of kRound's bits are shifted out
  const float result = e_r * std::bit_cast<float>(exponent << 23);
  return x < kLowest ? 0.0F : result;
}

// 1 / (1 + e^-x), relative error < 4e-7 for x > -87, 6e-39 below.
[[gnu::always_inline]] inline float fast_sigmoid(float x) {
  return 1.0F / (1.0F + fast_exp(-x));
}

struct Normal {
  float density;     // exp(-x^2/2) / sqrt(2 pi)
  float cumulative;  // the integral of the density up to x: (1 + erf(x / sqrt 2)) / 2
};

// The standard normal distribution at x, absolute error < 2e-7. Both come from one exponential: for u = |x| the upper
// tail is exp(-u^2/2) g(u) with a smooth g, here a polynomial in 1 / (1 + 0.34 u). So nothing cancels for negative x,
// and the tail keeps its relative precision (which 1 + erf would lose).
[[gnu::always_inline]] inline Normal fast_normal(float x) {
  const float u = x < 0.0F ? -x : x;
  const float e = fast_exp(-0.5F * x * x);
  const float t = 1.0F / (1.0F + 0.34F * u);
  float g = -0.02652313F;
  g = g * t + 0.141391248F;
  g = g * t - 0.276894718F;
  g = g * t + 0.206305802F;
  g = g * t - 0.0474337153F;
  g = g * t + 0.116455793F;
  g = g * t + 0.114933208F;
  g = g * t + 0.136146918F;
  g = g * t + 0.135618612F;
  const float tail = e * (g * t);
  const float rest = 1.0F - tail;
  return {e * 0.398942280F, x < 0.0F ? tail : rest};
}

}  // namespace pkmesh::PKM_CPU
