// SPDX-License-Identifier: Apache-2.0
#include "layers/memory/pooled.h"

#include "runtime/range.h"

namespace pkmesh {

int64_t width_of(const TableRows& rows) {
  return std::visit([](const auto& matrix) { return matrix.size(1); }, rows);
}

void pooled_gather(Stream& stream, TableRows rows, Vector<const Selection> selections,
                   Vector<const int32_t> pair_offsets, Matrix<float> partials) {
  check_shape("pooled gather: partials", partials, {{"pairs", pair_offsets.count() - 1}, {"width", width_of(rows)}});
  const Range range("pooled gather");
  PKM_DISPATCH(stream, pooled_gather, rows, selections, pair_offsets, partials);
}

void weight_gradients(Stream& stream, TableRows rows, Vector<const Selection> selections,
                      Vector<const int32_t> pair_offsets, Matrix<const float> gradients, Vector<float> dweights) {
  check_shape("weight gradients: gradients", gradients,
              {{"pairs", pair_offsets.count() - 1}, {"width", width_of(rows)}});
  check_shape("weight gradients: dweights", dweights, {{"selections", selections.count()}});
  const Range range("weight gradients");
  PKM_DISPATCH(stream, weight_gradients, rows, selections, pair_offsets, gradients, dweights);
}

void combine_partials(Stream& stream, Matrix<const float> partials, Vector<const int32_t> token_offsets,
                      Vector<const int32_t> token_pairs, Matrix<float> out) {
  check_shape("combine partials: partials", partials, {{"pairs", token_pairs.count()}, {"width", out.size(1)}});
  check_shape("combine partials: token offsets", token_offsets, {{"tokens + 1", out.size(0) + 1}});
  const Range range("combine partials");
  PKM_DISPATCH(stream, combine_partials, partials, token_offsets, token_pairs, out);
}

void copy_rows(Stream& stream, Matrix<const float> from, Vector<const int32_t> which, Matrix<float> to) {
  check_shape("copy rows: to", to, {{"rows", which.count()}, {"width", from.size(1)}});
  const Range range("copy rows");
  PKM_DISPATCH(stream, copy_rows, from, which, to);
}

void scatter_scalars(Stream& stream, Vector<const float> from, Vector<const int32_t> order, Vector<float> to) {
  check_shape("scatter scalars: order", order, {{"scalars", from.count()}});
  check_shape("scatter scalars: to", to, {{"scalars", from.count()}});
  const Range range("scatter scalars");
  PKM_DISPATCH(stream, scatter_scalars, from, order, to);
}

}  // namespace pkmesh
