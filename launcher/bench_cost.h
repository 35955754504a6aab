// SPDX-License-Identifier: Apache-2.0
// What each phase of a step must move and compute, from shapes alone; docs/benchmarks.md derives every formula. "Must":
// each operand enters and leaves the core once per pass that the maths forces, each distinct row of a table once, and
// nothing that one pass could hand to the next in registers. A multiplication, an addition, a root, an exponential each
// count as one operation.
#pragma once

#include <cstdint>
#include <vector>

#include "layers/transformer.h"
#include "optim/sparse_adam.h"

namespace pkmesh {

struct Cost {
  double streamed = 0;      // bytes read or written in order
  double rows_read = 0;     // bytes of table rows, read at random places
  double rows_updated = 0;  // bytes of table rows and their moments, read and written back: both counted
  double flops = 0;

  double bytes() const { return streamed + rows_read + rows_updated; }
};

// One lookup of a memory layer, on one rank.
struct LookupShape {
  int64_t tokens = 0;        // T
  int64_t width = 0;         // d
  int64_t heads = 0;         // H
  int64_t neighbours = 0;    // k
  int64_t sub_keys = 0;      // n
  int64_t key_width = 0;     // c
  int64_t value_width = 0;   // dv
  int64_t row_bytes = 0;     // of a row of the table
  int64_t moment_bytes = 0;  // of a row's moments
  bool batch_norm = true;
  bool gated = false;            // output SWILU
  bool summed = false;           // rows' gradients are summed in the pass that computes dw (sum_by_row())
  double distinct_rows = 0;      // U: rows read by any token
  double distinct_sub_keys = 0;  // u: sub-keys that a token's k slots touch in one half of one head, on average

  int64_t selections() const { return tokens * heads * neighbours; }  // T S
  int64_t features() const { return heads * key_width; }              // H c
};
// T, k and so on of a site; what depends on the selections is set to its least: k rows by ceil(sqrt(k)) sub-keys.
LookupShape lookup_shape(const MemorySite& site, const RowAdamOptions& rows, int64_t tokens);

namespace cost {

Cost linear_forward(int64_t tokens, int64_t in, int64_t out);
Cost linear_backward(int64_t tokens, int64_t in, int64_t out);  // gradients of input, weight and bias
Cost batch_norm_forward(int64_t tokens, int64_t features);
Cost batch_norm_backward(int64_t tokens, int64_t features);
Cost select_forward(const LookupShape& shape);
Cost select_backward(const LookupShape& shape);
Cost plan_alone(const LookupShape& shape);  // the route in a world of one
Cost count_usage(const LookupShape& shape);
Cost gather(const LookupShape& shape);
Cost weight_gradients(const LookupShape& shape);  // dw; and the rows' gradients, if summed
Cost sort_rows(const LookupShape& shape);
Cost row_bound(const LookupShape& shape);               // whether row gradients are finite, for the gate
Cost row_norms(const LookupShape& shape);               // ... and their norm, where they are clipped
Cost row_update(const LookupShape& shape);              // row gradients again, consumed by Adam
Cost row_update_in_backward(const LookupShape& shape);  // and dw at once, where rows are not summed
Cost attention_forward(int64_t sequences, int64_t context, int64_t width);
Cost attention_backward(int64_t sequences, int64_t context, int64_t width);
Cost layer_norm_forward(int64_t tokens, int64_t width);  // of the sum of two
Cost layer_norm_backward(int64_t tokens, int64_t width);
Cost gelu_forward(int64_t tokens, int64_t width);
Cost gelu_backward(int64_t tokens, int64_t width);
Cost cross_entropy(int64_t tokens, int64_t width, int64_t vocabulary);  // loss and gradients, tied output layer
Cost adam(int64_t parameters);

// The phases of a whole memory layer. Its rows' gradients are not clipped; rows that are not summed move in the
// backward pass.
std::vector<Cost> layer_forward(const LookupShape& shape);
std::vector<Cost> layer_backward(const LookupShape& shape);
std::vector<Cost> layer_update(const LookupShape& shape, int64_t dense_parameters);

// Operations of a training step on `sequences` whole sequences: matrix products, attention and memories, forward and
// backward; what is done per element is left out, and so are the norms of rows' gradients.
double step_flops(const TransformerShape& shape, int64_t sequences);

}  // namespace cost
}  // namespace pkmesh
