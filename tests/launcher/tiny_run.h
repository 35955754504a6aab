// SPDX-License-Identifier: Apache-2.0
// A training run of milliseconds: a pseudo-random "text" with structure, a model of two blocks with a memory.
#pragma once

#include <string>
#include <vector>

#include "io/config.h"
#include "launcher/trainer.h"
#include "runtime/random.h"
#include "tests/io/written_tokens.h"

namespace pkmesh::tiny {

inline constexpr int32_t kVocabulary = 61;

inline config::Config config(const std::vector<std::string>& overrides = {}) {
  constexpr const char* kText = R"(
    model { layers: 2 width: 32 heads: 4 context: 16
            memory { layers: 1 heads: 2 neighbours: 4 sub_keys: 12 key_width: 16 } }
    data { train: "unused" }
    train { steps: 20 batch: 12 seed: 5 }
    optimizer { learning_rate: 3e-3 warmup_steps: 4 clip_norm: 1 }
    values { clip_norm: 0.5 })";
  return resolve(parse_config(kText, "tiny", overrides));
}

// Each token is mostly a function of the one before it: something to learn.
inline std::vector<int32_t> ids(int64_t count) {
  const Random random(1, "tiny text");
  std::vector<int32_t> ids = {3};
  while (static_cast<int64_t>(ids.size()) < count) {
    const size_t i = ids.size();
    ids.push_back(random.uniform(2 * i) < 0.8F ? (ids.back() * 7 + 11) % kVocabulary
                                               : static_cast<int32_t>(random.bits(2 * i + 1) % kVocabulary));
  }
  return ids;
}

inline Trainer trainer(const config::Config& config, Communicator& world, const Tokens& tokens, Device device = {}) {
  return Trainer(config, world, device, BatchSampler(tokens, config.model().context(), config.data().seed()),
                 kVocabulary);
}

inline std::vector<double> losses(Trainer& trainer, int64_t steps) {
  std::vector<double> losses;
  for (int64_t i = 0; i < steps; ++i) losses.push_back(trainer.step().loss);
  return losses;
}

}  // namespace pkmesh::tiny
