// SPDX-License-Identifier: Apache-2.0
// What this machine can do at best, with this process's threads, measured in the same run as what is held against it:
// copying (which depends on how much is copied: caches), reading and rewriting rows at random places of a table, and
// single-precision matrix products.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launcher/bench_cost.h"
#include "runtime/device.h"

namespace pkmesh {

struct CeilingSizes {
  int64_t copy_bytes = int64_t{512} << 20;  // the most that is copied, source and target together
  int64_t table_rows = 262144;              // of the table whose rows are read
  int64_t row_bytes = 4096;                 // a multiple of 8
  int64_t table_bytes = int64_t{4} << 30;   // a larger table is cut to this size
  int64_t reads = 65536;                    // distinct rows per pass
  int64_t product = 2048;                   // side of the square matrices

  int64_t memory_bytes() const;  // what measure_ceilings() holds
};

// Bytes per second count what is read and what is written; flops count a multiplication and an addition as two.
struct Ceilings {
  struct Copy {
    double bytes;  // source and target together
    double bytes_per_s;
  };
  std::vector<Copy> copies;  // ascending sizes
  double rows_read = 0;      // bytes per second
  double rows_updated = 0;   // bytes per second, read and written back
  double flops = 0;          // per second
  // What they were measured in, to be kept until what is held against them is measured too: a virtual machine that
  // gives freed memory back to its host stops all threads meanwhile, again and again (docs/benchmarks.md).
  std::shared_ptr<const void> memory;

  // Between the measured sizes, on a line over the logarithm of the size.
  double copy_rate(double bytes) const;
  // The least time for a phase: what it moves, one after the other, or what it computes, whichever takes longer.
  double floor_ms(const Cost& cost) const;
  double floor_ms(const std::vector<Cost>& phases) const;  // one phase after the other
};

Ceilings measure_ceilings(Stream& stream, const CeilingSizes& sizes, int repeats);  // the best of `repeats`
std::string to_text(const Ceilings& ceilings, const CeilingSizes& sizes);
nlohmann::json to_json(const Ceilings& ceilings);

}  // namespace pkmesh
