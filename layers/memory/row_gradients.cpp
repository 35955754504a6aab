// SPDX-License-Identifier: Apache-2.0
#include "layers/memory/row_gradients.h"

#include <limits>

#include "runtime/range.h"

namespace pkmesh {

RowGradients sort_by_row(Stream& stream, Arena& arena, std::span<const GradientPiece> pieces,
                         Matrix<const float> d_output, int64_t local_rows) {
  const Range range("sort row gradients");
  int64_t selections = 0;
  for (const GradientPiece& piece : pieces) {
    PKM_CHECK(piece.first_source + piece.pair_offsets.count() - 1 <= d_output.size(0),
              "row gradients: pairs from {} on, {} of them, but {} output gradients", piece.first_source,
              piece.pair_offsets.count() - 1, d_output.size(0));
    selections += piece.selections.count();
  }
  PKM_CHECK(selections <= std::numeric_limits<int32_t>::max(), "{} contributions to one table in one step", selections);

  const int64_t most = std::min(selections, local_rows);
  const bool on_cpu = stream.device().kind == DeviceKind::kCpu;
  const RowGradientsOut out = {arena.take<int32_t>(most),
                               arena.take<int64_t>(most + 1),
                               arena.take<float>(selections),
                               arena.take<int32_t>(selections),
                               arena.take<int32_t>(on_cpu ? selections : 0),
                               arena.take<int64_t>(1)};
  int64_t count = most;
  const ArenaScope scope(arena);
  const auto records = arena.take<RowRecord>(selections);
  const auto scratch = arena.take<RowRecord>(on_cpu ? 0 : selections);
  PKM_DISPATCH(stream, sort_by_row, pieces, local_rows, records, scratch, out, count);
  return {out.rows.rows(0, count),
          out.offsets.rows(0, count + 1),
          out.weights,
          out.sources,
          out.order,
          d_output,
          out.touched};
}

}  // namespace pkmesh
