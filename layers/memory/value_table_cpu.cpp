// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "layers/memory/value_table.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {

// Each thread keeps a range of slots and looks at all selections: sums run in the order of the tokens on any number of
// threads, and no two threads write to one slot.
void count_usage(Stream&, Vector<const Selection> selections, Vector<uint32_t> counts, Vector<float> weights) {
  constexpr int64_t kMinimumRange = 4096;
  parallel_for(0, counts.count(), kMinimumRange, [&](int64_t begin, int64_t end) {
    // Of kSome selections at a time it first picks its own, without a branch: which are whose cannot be foreseen.
    constexpr int64_t kSome = 512;
    std::array<Selection, kSome> own;
    for (int64_t first = 0; first < selections.count(); first += kSome) {
      int64_t picked = 0;
      for (int64_t i = first; i < std::min(first + kSome, selections.count()); ++i) {
        own[static_cast<size_t>(picked)] = selections[i];
        picked += begin <= selections[i].row && selections[i].row < end ? 1 : 0;
      }
      for (const Selection& selection : std::span(own).first(static_cast<size_t>(picked))) {
        ++counts[selection.row];
        weights[selection.row] += selection.weight;
      }
    }
  });
}

void mark_best(Stream&, Matrix<const int32_t> slots, int64_t neighbours, Vector<uint32_t> bits) {
  for (int64_t t = 0; t < slots.size(0); ++t)
    for (int64_t s = 0; s < slots.size(1); s += neighbours) bits[slots(t, s) / 32] |= uint32_t{1} << (slots(t, s) % 32);
}

void draw_rows(Stream&, const Random& random, float scale, const Placement& placement, int rank, TableRows rows) {
  const int64_t width = width_of(rows);
  const auto stride = static_cast<uint64_t>((width + 3) / 4 * 4);  // Random::normals begins at multiples of 4
  std::visit(
      [&](const auto& matrix) {
        parallel_for(0, matrix.size(0), 16, [&](int64_t begin, int64_t end) {
          std::vector<float> values(static_cast<size_t>(width));
          for (int64_t local = begin; local < end; ++local) {
            const auto row = static_cast<uint64_t>(placement.global_row(rank, static_cast<int32_t>(local)));
            random.normals(row * stride, width, scale, values.data());
            std::transform(values.begin(), values.end(), matrix[local].data(),
                           [](float x) { return std::decay_t<decltype(matrix(0, 0))>(x); });
          }
        });
      },
      rows);
}

}  // namespace pkmesh::PKM_CPU
