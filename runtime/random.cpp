// SPDX-License-Identifier: Apache-2.0
#include "runtime/random.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <numbers>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "runtime/check.h"

namespace pkmesh {
namespace {

// 1 - u lies in (0, 1], so the logarithm is finite.
std::array<float, 4> box_muller(const std::array<uint32_t, 4>& bits) {
  std::array<float, 4> out;
  for (size_t i = 0; i < 4; i += 2) {
    const float radius = std::sqrt(-2.0F * std::log(1.0F - Random::to_unit(bits[i])));
    const float angle = 2.0F * std::numbers::pi_v<float> * Random::to_unit(bits[i + 1]);
    out[i] = radius * std::cos(angle);
    out[i + 1] = radius * std::sin(angle);
  }
  return out;
}

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
  return box_muller(block(i / 4))[i % 4];
}

void Random::normals(uint64_t begin, int64_t count, float scale, float* out) const {
  PKM_CHECK(begin % 4 == 0, "normals() must begin at a multiple of 4, not {}", begin);
  for (int64_t done = 0; done < count; done += 4) {
    const auto four = box_muller(block((begin + static_cast<uint64_t>(done)) / 4));
    for (int64_t j = 0; j < 4 && done + j < count; ++j) out[done + j] = four[static_cast<size_t>(j)] * scale;
  }
}

}  // namespace pkmesh
