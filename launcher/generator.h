// SPDX-License-Identifier: Apache-2.0
// A model that takes in a text token by token. Keys and values of past tokens are cached; when the context is full, its
// later half becomes the new beginning, because positions are learned and end there.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "launcher/model.h"

namespace pkmesh {

class Generator {
 public:
  explicit Generator(Model& model);

  // Takes in one token; the logits (V) of what follows it, until the next call. Collective: all ranks feed the same.
  std::span<const float> feed(int32_t id);
  // The next token is a text's first.
  void clear() { window_.clear(); }

 private:
  Model& model_;
  std::vector<Buffer<float>> memory_;
  std::vector<KeyValueCache> caches_;
  std::vector<int32_t> window_;  // the tokens in the caches
  Buffer<int32_t> staged_;       // host memory, as the next
  Buffer<float> logits_;         // (V)
};

}  // namespace pkmesh
