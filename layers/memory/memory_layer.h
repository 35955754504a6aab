// SPDX-License-Identifier: Apache-2.0
// A product-key memory layer (Lample et al. 2019, arXiv 1907.05242; output gate: Berges et al. 2024, arXiv 2412.09764):
//
//   q = norm(Wq x + bq)           (T, H, c)
//   slots, weights = select(q)    (T, H*k) each; softmax over each head's k
//   y = sum weight * row          (T, dv), heads summed, rows from the sharded table
//   PLAIN: y (dv = d)             SWILU: W2 (y * silu(W1 x)), W1 (dv, d), W2 (d, dv), no bias
//
// What backward() needs stays in the step's arena. Parameters: NAME.query.weight, NAME.query.bias, NAME.query_norm.*,
// NAME.keys, and for SWILU NAME.gate.weight (W1) and NAME.out.weight (W2).
#pragma once

#include <optional>
#include <string>

#include "layers/context.h"
#include "layers/dense.h"
#include "layers/memory/batch_norm.h"
#include "layers/memory/exchange.h"
#include "layers/memory/value_table.h"
#include "layers/parameters.h"

namespace pkmesh {

enum class QueryNorm { kNone, kBatchNorm, kLayerNorm };  // layer norm: over each half of each head, one scale and shift
enum class MemoryOutput { kPlain, kSwilu };

struct MemoryShape {
  int64_t width = 0;        // d
  int64_t heads = 4;        // H
  int64_t neighbours = 32;  // k, at most sub_keys
  int64_t sub_keys = 512;   // n; the table has n * n rows
  int64_t key_width = 512;  // c, both halves; even
  QueryNorm query_norm = QueryNorm::kBatchNorm;
  MemoryOutput output = MemoryOutput::kPlain;
  ExchangeOptions exchange = {};
};

class MemoryLayer {
 public:
  // Registers its parameters. Several layers may share a table, which must outlive them. Throws UserError if the shape
  // and the table do not fit.
  MemoryLayer(Parameters& parameters, const std::string& name, const MemoryShape& shape, ValueTable& table);

  // x (T, d) -> (T, d), in the arena. Collective, also with T = 0.
  Matrix<float> forward(StepContext& context, Matrix<const float> x);
  // dx (=) from dy, both (T, d); adds to the parameters' gradients and to what is pending in the table. Collective.
  void backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx);

  const MemoryShape& shape() const { return shape_; }
  const ValueTable& table() const { return table_; }
  const Route& route() const { return exchange_.route(); }  // of the last forward
  // Of the last forward: (T, H*k) slots, per head by score, and their weights.
  Matrix<const int32_t> slots() const { return kept_.slots; }
  Matrix<const float> weights() const { return kept_.weights; }

 private:
  // From forward to backward, in the arena.
  struct Kept {
    Matrix<float> queries;  // (T, H*c), normalised
    Matrix<int32_t> slots;
    Matrix<float> weights;
    Matrix<float> sum;   // y
    Matrix<float> gate;  // W1 x
  };
  View<float, 3> by_head(Matrix<float> queries) const;
  Matrix<float> by_half(Matrix<float> queries) const;

  std::string name_;
  MemoryShape shape_;
  ValueTable& table_;
  Exchange exchange_;
  Linear query_;
  std::optional<SyncBatchNorm> batch_norm_;
  std::optional<LayerNorm> layer_norm_;
  Parameter<4> keys_;
  std::optional<Linear> gate_;
  std::optional<Linear> output_;
  Kept kept_;
};

}  // namespace pkmesh
