// SPDX-License-Identifier: Apache-2.0
// Random numbers without state: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).
// The number is a function of (seed, name, step, index) alone, so it depends neither on the rank count, nor on threads,
// nor on the device, and a resumed run draws what the uninterrupted one would have drawn.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "runtime/host_device.h"

namespace pkmesh {

class Random {
 public:
  Random(uint64_t seed, std::string_view name, int64_t step = 0);

  // Four independent 32-bit numbers for block index i.
  PKM_HOST_DEVICE std::array<uint32_t, 4> block(uint64_t i) const {
    std::array<uint32_t, 4> c = {static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), static_cast<uint32_t>(step_),
                                 static_cast<uint32_t>(step_ >> 32)};
    uint32_t k0 = key_[0];
    uint32_t k1 = key_[1];
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53} * c[0];
      const uint64_t p1 = uint64_t{0xCD9E8D57} * c[2];
      c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
           static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
      k0 += 0x9E3779B9U;
      k1 += 0xBB67AE85U;
    }
    return c;
  }
  PKM_HOST_DEVICE uint32_t bits(uint64_t i) const { return block(i / 4)[i % 4]; }
  // out[j] = bits(begin + j), several blocks at a time in vector registers: three times as fast as block by block.
  void fill_bits(uint64_t begin, int64_t count, uint32_t* out) const;
  PKM_HOST_DEVICE float uniform(uint64_t i) const { return to_unit(bits(i)); }  // [0, 1), 24 bits
  // Standard normal by Box-Muller: numbers 2j and 2j+1 come from one pair of uniforms.
  float normal(uint64_t i) const;
  // out[j] = normal(begin + j) * scale, quicker than one at a time. begin must be a multiple of 4.
  void normals(uint64_t begin, int64_t count, float scale, float* out) const;

  PKM_HOST_DEVICE static float to_unit(uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24F; }

 private:
  std::array<uint32_t, 2> key_;
  uint64_t step_;
};

// A sequence of 32-bit words from one block: word i is a hash of i that the block keys. A tenth of a block's cost per
// word, for what needs many words and little of each, such as rounding. (The hash is MurmurHash3's finaliser, between
// two additions of the key.)
class WordSequence {
 public:
  PKM_HOST_DEVICE explicit WordSequence(const std::array<uint32_t, 4>& block) : key_{block[0], block[1]} {}
  PKM_HOST_DEVICE uint32_t operator()(uint32_t i) const {
    uint32_t x = (i ^ key_[1]) + key_[0];
    x = (x ^ (x >> 16)) * 0x85EBCA6BU;
    x = (x ^ (x >> 13)) * 0xC2B2AE35U;
    return (x ^ (x >> 16)) + key_[1];
  }

 private:
  std::array<uint32_t, 2> key_;
};

}  // namespace pkmesh
