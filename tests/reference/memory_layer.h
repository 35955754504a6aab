// SPDX-License-Identifier: Apache-2.0
// Judge of the whole memory layer over the tokens of all ranks, for selected slots that are given (the selection itself
// is not differentiated, and tests/reference/select.h judges it). Gradients are judged by finite differences of this.
#pragma once

#include <map>
#include <string>

#include "layers/memory/memory_layer.h"
#include "tests/reference/batch_norm.h"
#include "tests/reference/dense.h"
#include "tests/reference/select.h"

namespace pkmesh::reference {

// By the names that MemoryLayer gives its parameters; "x" (T, d) and "values" (N, dv) beside them.
using MemoryTensors = std::map<std::string, Numbers>;

inline Numbers memory_queries(const MemoryShape& shape, const MemoryTensors& tensors) {
  const auto d = static_cast<size_t>(shape.width);
  const Numbers& x = tensors.at("x");
  const size_t tokens = x.size() / d;
  Numbers queries = linear(x, tensors.at("query.weight"), tensors.at("query.bias"), tokens, d,
                           static_cast<size_t>(shape.heads * shape.key_width));
  if (shape.query_norm == QueryNorm::kBatchNorm)
    return batch_norm(queries, tensors.at("query_norm.weight"), tensors.at("query_norm.bias"), 1e-5).y;
  if (shape.query_norm == QueryNorm::kLayerNorm)
    return layer_norm(queries, tensors.at("query_norm.weight"), tensors.at("query_norm.bias"), 1e-5).y;
  return queries;
}

inline Numbers memory_layer(const MemoryShape& shape, int64_t value_width, const MemoryTensors& tensors,
                            const std::vector<int32_t>& slots) {
  const auto d = static_cast<size_t>(shape.width);
  const auto dv = static_cast<size_t>(value_width);
  const Numbers& x = tensors.at("x");
  const size_t tokens = x.size() / d;
  const Numbers queries = memory_queries(shape, tensors);
  const auto selections = static_cast<size_t>(shape.heads * shape.neighbours);
  Numbers weights(tokens * selections);
  select_weights(View<const double, 3>(queries.data(), tokens, shape.heads, shape.key_width),
                 View<const double, 4>(tensors.at("keys").data(), shape.heads, 2, shape.sub_keys, shape.key_width / 2),
                 Matrix<const int32_t>(slots.data(), tokens, selections),
                 Matrix<double>(weights.data(), tokens, selections));
  Numbers y(tokens * dv);
  const Numbers& values = tensors.at("values");
  for (size_t i = 0; i < weights.size(); ++i)
    for (size_t j = 0; j < dv; ++j)
      y[i / selections * dv + j] += weights[i] * values[static_cast<size_t>(slots[i]) * dv + j];
  if (shape.output == MemoryOutput::kPlain) return y;
  return linear(silu_gate(y, linear(x, tensors.at("gate.weight"), {}, tokens, d, dv)), tensors.at("out.weight"), {},
                tokens, dv, d);
}

}  // namespace pkmesh::reference
