// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "layers/memory/gather_in_blocks.h"
#include "layers/memory/pooled.h"
#include "layers/memory/row_kernels.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kPairGrain = 4;

template <class T>
void gather(Matrix<T> rows, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
            Matrix<float> partials) {
  const int64_t width = rows.size(1);
  if (gathers_in_blocks(selections.count(), partials.size(0), rows.size(0), width))
    return gather_in_blocks(rows, selections, pair_offsets, partials);
  parallel_for(0, partials.size(0), kPairGrain, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t start = pair_offsets[pair];
      const auto row_at = [&](int64_t i) {
        const Selection selection = selections[start + i];
        return WeightedRow<T>{rows.data() + selection.row * width, selection.weight};
      };
      weighted_sum(pair_offsets[pair + 1] - start, pair_offsets[end] - start, width, row_at,
                   partials.data() + pair * width);
    }
  });
}

// A token's gradient stays in the cache while its rows pass.
template <class T>
void dots(Matrix<T> rows, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
          Matrix<const float> gradients, Vector<float> dweights) {
  const int64_t width = rows.size(1);
  parallel_for(0, gradients.size(0), kPairGrain, [&](int64_t begin, int64_t end) {
    const auto row_of = [&](int64_t i) -> const T* { return rows.data() + selections[i].row * width; };
    const int64_t last = pair_offsets[end];
    for (int64_t pair = begin; pair < end; ++pair) {
      const float* gradient = gradients.data() + pair * width;
      int64_t i = pair_offsets[pair];
      for (; i + 4 <= pair_offsets[pair + 1]; i += 4) {
        const T* four[4] = {row_of(i), row_of(i + 1), row_of(i + 2), row_of(i + 3)};
        for (int64_t next = i + 4; next < std::min(i + 8, last); ++next) prefetch_beginning(row_of(next));
        dot_rows<4>(gradient, four, width, dweights.data() + i);
      }
      for (; i < pair_offsets[pair + 1]; ++i) {
        const T* row = row_of(i);
        dot_rows<1>(gradient, &row, width, dweights.data() + i);
      }
    }
  });
}

}  // namespace

void pooled_gather(Stream&, TableRows rows, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
                   Matrix<float> partials) {
  std::visit([&](auto matrix) { gather(matrix, selections, pair_offsets, partials); }, rows);
}

void weight_gradients(Stream&, TableRows rows, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
                      Matrix<const float> gradients, Vector<float> dweights) {
  std::visit([&](auto matrix) { dots(matrix, selections, pair_offsets, gradients, dweights); }, rows);
}

void combine_partials(Stream&, Matrix<const float> partials, Vector<const int32_t> token_offsets,
                      Vector<const int32_t> token_pairs, Matrix<float> out) {
  const int64_t width = out.size(1);
  parallel_for(0, out.size(0), kPairGrain, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int32_t* pairs = token_pairs.data() + token_offsets[token];
      const auto row_at = [&](int64_t i) { return WeightedRow<float>{partials.data() + pairs[i] * width, 1.0F}; };
      const int64_t count = token_offsets[token + 1] - token_offsets[token];
      weighted_sum(count, 0, width, row_at, out.data() + token * width);
    }
  });
}

void copy_rows(Stream&, Matrix<const float> from, Vector<const int32_t> which, Matrix<float> to) {
  const int64_t width = from.size(1);
  parallel_for(0, to.size(0), kPairGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::copy_n(from.data() + which[i] * width, width, to.data() + i * width);
  });
}

void scatter_scalars(Stream&, Vector<const float> from, Vector<const int32_t> order, Vector<float> to) {
  parallel_for(0, from.count(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[order[i]] = from[i];
  });
}

}  // namespace pkmesh::PKM_CPU
