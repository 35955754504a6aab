// SPDX-License-Identifier: Apache-2.0
// The backward pass of rows that are read often: a row and its gradient stay in the registers while the output
// gradients of all that read it pass. Those are read once for both of what is made of them, the selections' dweights
// and the row's gradient, which is written: one row for eight contributions and more. Rows that are read once or twice
// are better off with weight_gradients() and a gradient that is never written (layers/memory/row_gradients.h).
//
// Names and shapes are those of layers/memory/pooled.h. On the CPU alone.
#pragma once

#include "layers/memory/pooled.h"

namespace pkmesh {

// The rows that selections read, ascending, and their gradients: room for as many as there may be at most.
struct RowSums {
  Vector<int32_t> rows;  // (U)
  Matrix<float> sums;    // (U, dv)
};

PKM_KERNEL(sum_by_row, TableRows rows, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
           Matrix<const float> gradients, Vector<float> dweights, const RowSums& out, int64_t& count)

// dweights[i] = gradients[pair of i] . row of i
// sums[u] = sum over the selections that read rows[u] of weight * gradients[pair]
// Returns U, how many rows are read. Sums run in an order that depends on the sizes alone.
int64_t sum_by_row(Stream& stream, const TableRows& rows, Vector<const Selection> selections,
                   Vector<const int32_t> pair_offsets, Matrix<const float> gradients, Vector<float> dweights,
                   const RowSums& out);

// Whether each of `rows` is read by so many of the selections that it pays.
bool read_often(int64_t selections, int64_t rows);

}  // namespace pkmesh
