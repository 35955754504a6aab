// SPDX-License-Identifier: Apache-2.0
#include "runtime/random.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "runtime/check.h"

namespace pkmesh {
namespace {

// Four blocks in step, a 32-bit word of each in the low half of a lane; what the high halves hold does not matter.
using Lanes [[gnu::vector_size(32)]] = uint64_t;

// The 64-bit products of the low halves. (GCC does not find the one instruction for it.)
[[gnu::always_inline]] inline void multiply(const Lanes& a, uint32_t b, Lanes& product) {
#ifdef __AVX2__
  product = reinterpret_cast<Lanes>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#else
  product = (a & 0xFFFFFFFFU) * b;
#endif
}

// out[0, 16) = blocks i to i + 3, as Random::block computes them.
[[gnu::always_inline]] inline void four_blocks(uint64_t i, uint64_t step, std::array<uint32_t, 2> key, uint32_t* out) {
  const Lanes index = {i, i + 1, i + 2, i + 3};
  Lanes c0 = index;
  Lanes c1 = index >> 32;
  Lanes c2 = Lanes{} + step;
  Lanes c3 = c2 >> 32;
  for (int round = 0; round < 10; ++round) {
    Lanes p0;
    Lanes p1;
    multiply(c0, 0xD2511F53, p0);
    multiply(c2, 0xCD9E8D57, p1);
    c0 = (p1 >> 32) ^ c1 ^ key[0];
    c1 = p1;
    c2 = (p0 >> 32) ^ c3 ^ key[1];
    c3 = p0;
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  const Lanes low = (c0 & 0xFFFFFFFFU) | (c1 << 32);  // words 0 and 1 of each block
  const Lanes high = (c2 & 0xFFFFFFFFU) | (c3 << 32);
  const uint64_t words[8] = {low[0], high[0], low[1], high[1], low[2], high[2], low[3], high[3]};
  std::memcpy(out, words, sizeof(words));
}

using Floats [[gnu::vector_size(32)]] = float;
using Words [[gnu::vector_size(32)]] = uint32_t;
using Integers [[gnu::vector_size(32)]] = int32_t;

[[gnu::always_inline]] inline void to_unit(const Words& bits, Floats& out) {
  out = __builtin_convertvector(reinterpret_cast<Integers>(bits >> 8), Floats) * 0x1p-24F;
}

// ln x for normal x > 0, relative error < 2e-7. As below, the coefficients are minimax fits of our own.
[[gnu::always_inline]] inline void logarithm(const Floats& x, Floats& out) {
  const auto bits = reinterpret_cast<Integers>(x);
  const Integers exponent = (bits - 0x3F3504F3) >> 23;  // so that the rest lies in [sqrt(1/2), sqrt(2))
  const Floats f = reinterpret_cast<Floats>(bits - (exponent << 23)) - 1.0F;
  Floats p = f * -0.07362868F + 0.12620327F;
  p = p * f - 0.13202104F;
  p = p * f + 0.14227115F;
  p = p * f - 0.1662137F;
  p = p * f + 0.19999826F;
  p = p * f - 0.25000852F;
  p = p * f + 0.33333355F;
  out = __builtin_convertvector(exponent, Floats) * 0.693147181F + (f + f * f * (p * f - 0.5F));
}

// cos and sin of 2 pi t for t in [0, 1), absolute error < 2e-7.
[[gnu::always_inline]] inline void cosine_and_sine(const Floats& t, Floats& cosine, Floats& sine) {
  const Integers quarter = __builtin_convertvector(t * 4.0F + 0.5F, Integers);  // the nearest, 0 to 4
  const Floats r = (t * 4.0F - __builtin_convertvector(quarter, Floats)) * 1.57079633F;
  const Floats s = r * r;
  const Floats sin_r = r + r * s * ((s * -0.00019520213F + 0.008332204F) * s - 0.16666655F);
  const Floats cos_r = 1.0F + s * (((s * 2.4438232e-05F - 0.0013887365F) * s + 0.041666646F) * s - 0.5F);
  const Integers odd = (quarter & 1) != 0;
  cosine = odd ? sin_r : cos_r;
  sine = odd ? cos_r : sin_r;
  cosine = ((quarter + 1) & 2) != 0 ? -cosine : cosine;
  sine = (quarter & 2) != 0 ? -sine : sine;
}

// out[0, 16) = normals from 16 words. 1 - u lies in (0, 1], so the logarithm is finite.
[[gnu::always_inline]] inline void box_muller(const uint32_t* words, float scale, float* out) {
  Words a;
  Words b;
  std::memcpy(&a, words, sizeof(a));
  std::memcpy(&b, words + 8, sizeof(b));
  Floats u;
  Floats t;
  to_unit(__builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14), u);
  to_unit(__builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15), t);
  Floats radius;
  logarithm(1.0F - u, radius);
  float roots[8];
  std::memcpy(roots, &radius, sizeof(roots));
  for (float& root : roots) root = std::sqrt(-2.0F * root);
  std::memcpy(&radius, roots, sizeof(roots));
  Floats cosine;
  Floats sine;
  cosine_and_sine(t, cosine, sine);
  cosine = cosine * radius * scale;
  sine = sine * radius * scale;
  const Floats low = __builtin_shufflevector(cosine, sine, 0, 8, 1, 9, 2, 10, 3, 11);
  const Floats high = __builtin_shufflevector(cosine, sine, 4, 12, 5, 13, 6, 14, 7, 15);
  std::memcpy(out, &low, sizeof(low));
  std::memcpy(out + 8, &high, sizeof(high));
}

}  // namespace

Random::Random(uint64_t seed, std::string_view name, int64_t step) : step_(static_cast<uint64_t>(step)) {
  const uint64_t key = XXH3_64bits_withSeed(name.data(), name.size(), seed);
  key_ = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

void Random::fill_bits(uint64_t begin, int64_t count, uint32_t* out) const {
  const int64_t head = std::min<int64_t>(count, static_cast<int64_t>((4 - begin % 4) % 4));
  int64_t done = 0;
  for (; done < head; ++done) out[done] = bits(begin + static_cast<uint64_t>(done));
  for (; done + 32 <= count; done += 32) {  // two at once hide the multiplications' latency
    const uint64_t first = (begin + static_cast<uint64_t>(done)) / 4;
    four_blocks(first, step_, key_, out + done);
    four_blocks(first + 4, step_, key_, out + done + 16);
  }
  for (; done < count; done += 4) {
    const auto four = block((begin + static_cast<uint64_t>(done)) / 4);
    std::copy_n(four.begin(), std::min<int64_t>(4, count - done), out + done);
  }
}

float Random::normal(uint64_t i) const {
  float four[4];
  normals(i / 4 * 4, 4, 1.0F, four);
  return four[i % 4];
}

void Random::normals(uint64_t begin, int64_t count, float scale, float* out) const {
  PKM_CHECK(begin % 4 == 0, "normals() must begin at a multiple of 4, not {}", begin);
  constexpr int64_t kChunk = 32;  // two at once hide latency
  for (int64_t done = 0; done < count; done += kChunk) {
    uint32_t words[kChunk];
    float drawn[kChunk];
    const uint64_t first = (begin + static_cast<uint64_t>(done)) / 4;
    four_blocks(first, step_, key_, words);
    four_blocks(first + 4, step_, key_, words + 16);
    float* const to = count - done < kChunk ? drawn : out + done;
    box_muller(words, scale, to);
    box_muller(words + 16, scale, to + 16);
    if (to == drawn) std::copy_n(drawn, count - done, out + done);
  }
}

}  // namespace pkmesh
