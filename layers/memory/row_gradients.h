// SPDX-License-Identifier: Apache-2.0
// The gradient of a table before it exists: which rows were read, and from what each row's gradient is made. A row's
// gradient is the sum over its contributions of weight * (output gradient of the pair that read it). It is computed
// where it is consumed, one row at a time in the first-level cache, and never stored per selection or for the table.
// (Rows that are read often come already summed, as if each had been read once: layers/memory/sum_by_row.h.)
//
// Contributions are sorted once by row. Inside a row they keep the order in which they came: by piece, then in the
// order of tokens (comm/route.h). So the sum has the same order on any number of threads, and of ranks whose lookups
// take one leg.
#pragma once

#include <span>

#include "comm/route.h"
#include "runtime/buffer.h"
#include "runtime/dispatch.h"

namespace pkmesh {

// What one backward pass left at the owner. The output gradient of its p-th pair is d_output[first_source + p].
struct GradientPiece {
  Vector<const Selection> selections;  // (M)
  Vector<const int32_t> pair_offsets;  // (P + 1)
  int64_t first_source = 0;
};

//   gradient of row rows[u] = sum over c in [offsets[u], offsets[u + 1]) of weights[c] * d_output[sources[c]]
//
// U, the number of rows, is born on the device. On the CPU rows and offsets have exactly their U and U + 1 elements. On
// a GPU the host does not wait to learn U: they have as many as there may be at most, and kernels read `touched`.
struct RowGradients {
  Vector<const int32_t> rows;     // (U) local rows, ascending, each once
  Vector<const int64_t> offsets;  // (U + 1)
  Vector<const float> weights;    // (contributions)
  Vector<const int32_t> sources;  // (contributions)
  // (contributions) which selection each was, counted over all pieces: a permutation. Empty on a GPU.
  Vector<const int32_t> order;
  Matrix<const float> d_output;   // (sources, dv)
  Vector<const int64_t> touched;  // (1) U; may be empty on the CPU
};

// A GPU's kernels sum a row's contributions in chunks of so many; each full one leaves a row of floats in scratch.
constexpr int64_t kGpuChunk = 256;

// The arrays live in `arena`. At most 2^31 - 1 contributions.
RowGradients sort_by_row(Stream& stream, Arena& arena, std::span<const GradientPiece> pieces,
                         Matrix<const float> d_output, int64_t local_rows);

// The device's part. Vectors hold what there may be at most (`scratch` nothing on the CPU); touched[0] becomes U, and
// so does `count` where the device knows it when the call returns: on the CPU.
struct RowRecord {
  int32_t row;
  float weight;
  int32_t source;
  int32_t selection;
};
struct RowGradientsOut {
  Vector<int32_t> rows;
  Vector<int64_t> offsets;
  Vector<float> weights;
  Vector<int32_t> sources;
  Vector<int32_t> order;  // empty on a GPU
  Vector<int64_t> touched;
};
PKM_KERNEL(sort_by_row, std::span<const GradientPiece> pieces, int64_t local_rows, Vector<RowRecord> records,
           Vector<RowRecord> scratch, const RowGradientsOut& out, int64_t& count)

}  // namespace pkmesh
