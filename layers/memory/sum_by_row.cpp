// SPDX-License-Identifier: Apache-2.0
#include "layers/memory/sum_by_row.h"

#include "runtime/range.h"

namespace pkmesh {

int64_t sum_by_row(Stream& stream, const TableRows& rows, Vector<const Selection> selections,
                   Vector<const int32_t> pair_offsets, Matrix<const float> gradients, Vector<float> dweights,
                   const RowSums& out) {
  check_shape("sum by row: gradients", gradients, {{"pairs", pair_offsets.count() - 1}, {"width", width_of(rows)}});
  check_shape("sum by row: dweights", dweights, {{"selections", selections.count()}});
  check_shape("sum by row: sums", out.sums, {{"rows", out.rows.count()}, {"width", width_of(rows)}});
  const Range range("sum by row");
  int64_t count = 0;
  PKM_DISPATCH(stream, sum_by_row, rows, selections, pair_offsets, gradients, dweights, out, count);
  return count;
}

bool read_often(int64_t selections, int64_t rows) {
  constexpr int64_t kManyUses = 8;  // of each row, on average
  return selections >= kManyUses * rows;
}

}  // namespace pkmesh
