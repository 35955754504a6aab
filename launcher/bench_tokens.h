// SPDX-License-Identifier: Apache-2.0
// Tokens for benchmarks that train: they come from a temporary folder that is gone when these functions return; its
// pages stay mapped. The same on every rank.
#pragma once

#include "io/config.pb.h"
#include "io/token_file.h"

namespace pkmesh {

// Uniformly random ids.
Tokens random_tokens(int64_t count, int64_t vocabulary);

// What the configuration trains on, and how many kinds of token there are: the text inside the program for
// data.source BUILT_IN, else the folder data.train. UserError if there is none.
struct TrainingTokens {
  Tokens tokens;
  int64_t vocabulary;
};
TrainingTokens training_tokens(const config::Config& config);

}  // namespace pkmesh
