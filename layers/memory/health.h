// SPDX-License-Identifier: Apache-2.0
// How a memory is used over a window of steps or an evaluation (Lample et al. 2019, section 4.4), from the counters
// that the rows' owners kept. With z the slots' shares of all weight ("weighted") or of all selections ("counted"):
//
//   usage            share of slots that were read with a weight > 0
//   KL to uniform    log N + sum z log z, in nats: 0 if all slots share alike, log N if one takes all
//   Gini             0 if all slots share alike, (N - 1) / N if one takes all: the mean absolute difference of two
//                    slots' shares over twice the mean share
//   slots_50         the fewest slots that together hold half of all weight
//
// Exact on a sharded table: the ranks sort the counters together. Each sends its distinct values, with how often it has
// them, to the rank that has their range (ranges are chosen by sampling), so a rank sends and receives about one number
// per row of its own; equal values travel once, so a uniform memory does not burden one rank.
#pragma once

#include <cstdint>
#include <span>

#include "comm/communicator.h"

namespace pkmesh {

struct MemoryHealth {  // all 0 if nothing was selected
  double usage = 0;
  double kl_counted = 0;
  double kl_weighted = 0;
  double gini_counted = 0;
  double gini_weighted = 0;
  int64_t slots_50 = 0;  // of weight; 90 and 99 likewise
  int64_t slots_90 = 0;
  int64_t slots_99 = 0;
  double top1_usage = 0;     // share of slots that were the best of some token's head; 0 if that was not recorded
  double hottest_shard = 0;  // selections of the busiest rank over the mean of ranks: 1 is even
  int64_t selections = 0;    // of all ranks
};

// Collective; the same figures on every rank. Per local row, in host memory: counts of selections, sums of their
// weights (>= 0), and whether the row was the best of a token's head (not 0), or empty on all ranks. Rows of all ranks
// together: `slots`. If a weight is not finite, the weighted figures are NaN and slots_* 0.
MemoryHealth memory_health(Communicator& world, std::span<const uint32_t> counts, std::span<const float> weights,
                           std::span<const uint8_t> top1, int64_t slots);

}  // namespace pkmesh
