// SPDX-License-Identifier: Apache-2.0
#include "runtime/random.h"

#include <xxhash.h>

#include <numbers>

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

}  // namespace

Random::Random(uint64_t seed, std::string_view name, int64_t step) : step_(static_cast<uint64_t>(step)) {
  const uint64_t key = XXH3_64bits_withSeed(name.data(), name.size(), seed);
  key_ = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
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
