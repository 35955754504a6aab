// SPDX-License-Identifier: Apache-2.0
#include "layers/embedding.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

void check_inside(const char* what, Vector<const int32_t> rows, int64_t count) {
  for (int64_t t = 0; t < rows.count(); ++t)
    PKM_CHECK(rows[t] >= 0 && rows[t] < count, "embedding: {} {} of token {} is outside the table of {}", what, rows[t],
              t, count);
}

// table[rows[t]] += dy[t] in columns [first, last).
void add_rows(Vector<const int32_t> rows, Matrix<const float> dy, int64_t first, int64_t last, Matrix<float> table) {
  const int64_t width = dy.size(1);
  for (int64_t t = 0; t < rows.count(); ++t) {
    const float* from = dy.data() + t * width;
    float* to = table.data() + rows[t] * width;
#pragma omp simd
    for (int64_t j = first; j < last; ++j) to[j] += from[j];
  }
}

}  // namespace

void embedding_forward(Stream&, Vector<const int32_t> tokens, Vector<const int32_t> positions,
                       Matrix<const float> token_table, Matrix<const float> position_table, Matrix<float> y) {
  check_inside("token", tokens, token_table.size(0));
  check_inside("position", positions, position_table.size(0));
  const int64_t width = y.size(1);
  parallel_for(0, tokens.count(), 1 + 16384 / (width + 1), [&](int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
      const float* token = token_table.data() + tokens[t] * width;
      const float* position = position_table.data() + positions[t] * width;
      float* out = y.data() + t * width;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) out[j] = token[j] + position[j];
    }
  });
}

void embedding_backward(Stream&, Vector<const int32_t> tokens, Vector<const int32_t> positions, Matrix<const float> dy,
                        Matrix<float> dtoken_table, Matrix<float> dposition_table) {
  check_inside("token", tokens, dtoken_table.size(0));
  check_inside("position", positions, dposition_table.size(0));
  // Threads divide the columns, not the tokens: no two write to one element, and no sort is needed. A cache line of
  // columns is the smallest share, so that threads do not write to one line either (rows of odd width aside).
  constexpr int64_t kLine = 16;
  const int64_t width = dy.size(1);
  parallel_for(0, (width + kLine - 1) / kLine, 2, [&](int64_t from, int64_t to) {
    const int64_t last = std::min(to * kLine, width);
    add_rows(tokens, dy, from * kLine, last, dtoken_table);
    add_rows(positions, dy, from * kLine, last, dposition_table);
  });
}

void count_positions(Stream&, int64_t length, Vector<int32_t> positions) {
  for (int64_t t = 0; t < positions.count(); ++t) positions[t] = static_cast<int32_t>(t % length);
}

}  // namespace pkmesh::PKM_CPU
