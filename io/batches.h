// SPDX-License-Identifier: Apache-2.0
// Which tokens a step reads: a function of (tokens, context, seed, step) and of nothing else. So the order depends
// neither on the rank count nor on where a run was interrupted, and nothing about it need be saved.
//
// The tokens are cut into windows of context + 1, each beginning at the last token of the one before: inputs are a
// window without its last token, targets the same without its first. An epoch reads every window once, in a
// pseudo-random order that is computed, not stored, and shifts all windows by a random offset below `context`.
#pragma once

#include <cstdint>

#include "io/token_file.h"
#include "runtime/random.h"
#include "runtime/view.h"

namespace pkmesh {

// Sequences [begin, end) in the run's global order: sequence number g is the g-th that the run reads.
struct SequenceRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t count() const { return end - begin; }
};

// How a step's `sequences` are shared out: first over `accumulate` micro-steps, then each micro-step over the ranks, in
// contiguous pieces whose sizes differ by at most one. What a micro-step holds is the same on any rank count, and so
// are its batch statistics. A share may be empty.
struct BatchShape {
  int64_t sequences = 1;  // of a step, over all ranks and micro-steps
  int64_t accumulate = 1;
  int64_t rank = 0;
  int64_t ranks = 1;

  SequenceRange micro_step(int64_t step, int64_t micro) const;  // over all ranks
  SequenceRange share(int64_t step, int64_t micro) const;       // this rank's part of it
  int64_t largest_share() const;                                // over all steps, micro-steps and ranks
};

// A bijection of [0, size) chosen by (seed, epoch), without a table: a Feistel network over the next power of four,
// walked until it lands inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).
class Permutation {
 public:
  Permutation(int64_t size, uint64_t seed, int64_t epoch);
  int64_t operator()(int64_t index) const;

 private:
  uint64_t encipher(uint64_t value) const;

  Random random_;
  int64_t size_;
  int half_bits_;
};

class BatchSampler {
 public:
  // UserError if the tokens do not make one window.
  BatchSampler(Tokens tokens, int64_t context, uint64_t seed);

  int64_t context() const { return context_; }
  // Where sequence number g begins among the tokens: it reads [start, start + context].
  int64_t start_of(int64_t g) const;
  // inputs and targets: (range.count(), context).
  void fill(SequenceRange range, Matrix<int32_t> inputs, Matrix<int32_t> targets) const;

 private:
  Tokens tokens_;
  int64_t context_;
  uint64_t seed_;
  int64_t windows_;
};

// Windows over all tokens in order, each token but the first predicted exactly once. The last window is what is left,
// shorter than the others where they do not come out even.
class EvaluationWindows {
 public:
  // UserError if there are fewer than two tokens.
  EvaluationWindows(Tokens tokens, int64_t context);

  int64_t context() const { return context_; }
  int64_t count() const { return (targets() + context_ - 1) / context_; }
  int64_t targets() const { return tokens_.count() - 1; }  // tokens that are predicted
  int64_t length(int64_t window) const;                    // its targets
  // inputs and targets: (range.count(), length of each window); range lies in [0, count()), its windows are as long.
  void fill(SequenceRange range, Matrix<int32_t> inputs, Matrix<int32_t> targets) const;

 private:
  Tokens tokens_;
  int64_t context_;
};

}  // namespace pkmesh
