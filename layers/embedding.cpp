// SPDX-License-Identifier: Apache-2.0
#include "layers/embedding.h"

#include "runtime/range.h"

namespace pkmesh {

void embedding_forward(Stream& stream, Vector<const int32_t> tokens, Vector<const int32_t> positions,
                       Matrix<const float> token_table, Matrix<const float> position_table, Matrix<float> y) {
  check_shape("embedding: y", y, {{"tokens", tokens.size(0)}, {"width", token_table.size(1)}});
  check_shape("embedding: positions", positions, {{"tokens", tokens.size(0)}});
  check_shape("embedding: position_table", position_table,
              {{"context", position_table.size(0)}, {"width", token_table.size(1)}});
  Range range("embedding_forward");
  PKM_DISPATCH(stream, embedding_forward, tokens, positions, token_table, position_table, y);
}

void embedding_backward(Stream& stream, Vector<const int32_t> tokens, Vector<const int32_t> positions,
                        Matrix<const float> dy, Matrix<float> dtoken_table, Matrix<float> dposition_table) {
  check_shape("embedding: dy", dy, {{"tokens", tokens.size(0)}, {"width", dtoken_table.size(1)}});
  check_shape("embedding: positions", positions, {{"tokens", tokens.size(0)}});
  check_shape("embedding: dposition_table", dposition_table,
              {{"context", dposition_table.size(0)}, {"width", dtoken_table.size(1)}});
  Range range("embedding_backward");
  PKM_DISPATCH(stream, embedding_backward, tokens, positions, dy, dtoken_table, dposition_table);
}

}  // namespace pkmesh
