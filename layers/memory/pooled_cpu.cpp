// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <vector>

#include "layers/memory/pooled.h"
#include "layers/memory/row_kernels.h"
#include "layers/memory/sum_by_row.h"
#include "runtime/cache.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kPairGrain = 4;

constexpr int64_t kMostVectors = 4;  // of a slice's columns
constexpr int64_t kSumsAtOnce =
    8;  // vectors: an addition waits four cycles for the one before it, and two start in each

// How many columns of all rows make a slice of half the second-level cache: 0 if that is not worth it. Each thread
// makes a copy of its own.
int64_t slice_of(int64_t selections, int64_t rows, int64_t width) {
  const int64_t fit = second_level_cache() / 2 / static_cast<int64_t>(sizeof(float));
  if (rows * width <= fit || !read_often(selections, threads() * rows)) return 0;
  for (int64_t slice = kMostVectors * kLanes; slice >= kLanes; slice /= 2)
    if (rows * slice <= fit) return slice;
  return 0;
}

// A slice of columns of all rows, `columns` of which are the table's and belong to partials from `column` on.
struct Slice {
  const float* copy;
  int64_t column;
  int64_t columns;
};

// kPairs partials from `pair` on, kVectors registers of each. Sums stay in registers, and each adds its rows in order:
// they are those of weighted_sum().
template <int kVectors, int kPairs>
void sum_pairs(const Slice& slice, Vector<const Selection> selections, Vector<const int32_t> pair_offsets, int64_t pair,
               Matrix<float> partials) {
  Lanes sums[kPairs][kVectors] = {};
  const auto add = [&](const Selection& selection, Lanes* sum) {
    const float* row = slice.copy + selection.row * (kVectors * kLanes);
    for (int v = 0; v < kVectors; ++v) sum[v] += selection.weight * load_lanes(row + v * kLanes);
  };
  const auto count_of = [&](int p) { return pair_offsets[pair + p + 1] - pair_offsets[pair + p]; };
  const Selection* first[kPairs];
  int32_t common = count_of(0);
  for (int p = 0; p < kPairs; ++p) {
    first[p] = selections.data() + pair_offsets[pair + p];
    common = std::min(common, count_of(p));
  }
  for (int32_t i = 0; i < common; ++i)
    for (int p = 0; p < kPairs; ++p) add(first[p][i], sums[p]);
  for (int p = 0; p < kPairs; ++p) {
    for (int32_t i = common; i < count_of(p); ++i) add(first[p][i], sums[p]);
    std::array<float, kVectors * kLanes> out;
    for (int v = 0; v < kVectors; ++v) store_lanes(out.data() + v * kLanes, sums[p][v]);
    std::copy_n(out.data(), slice.columns, &partials(pair + p, slice.column));
  }
}

template <int kVectors>
void sum_slice(const Slice& slice, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
               int64_t begin, int64_t end, Matrix<float> partials) {
  constexpr int kPairs = kSumsAtOnce / kVectors;
  int64_t pair = begin;
  for (; pair + kPairs <= end; pair += kPairs)
    sum_pairs<kVectors, kPairs>(slice, selections, pair_offsets, pair, partials);
  for (; pair < end; ++pair) sum_pairs<kVectors, 1>(slice, selections, pair_offsets, pair, partials);
}

// Where each row is read by many, a slice of columns of all rows at a time, copied so that it lies in one piece: as it
// lies in the table, a slice's lines share a few of the cache's sets.
template <class T>
void gather_by_slices(Matrix<T> rows, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
                      int64_t width, Matrix<float> partials) {
  const auto sum = width == kLanes ? sum_slice<1> : width == 2 * kLanes ? sum_slice<2> : sum_slice<kMostVectors>;
  parallel_for(0, partials.size(0), kPairGrain, [&](int64_t begin, int64_t end) {
    thread_local std::vector<Lanes> memory;  // kept from call to call
    memory.resize(static_cast<size_t>(rows.size(0) * width / kLanes));
    float* const copy = reinterpret_cast<float*>(memory.data());
    for (int64_t column = 0; column < rows.size(1); column += width) {
      const Slice slice = {copy, column, std::min(width, rows.size(1) - column)};
      for (int64_t row = 0; row < rows.size(0); ++row)
        std::transform(&rows(row, column), &rows(row, column) + slice.columns, copy + row * width,
                       [](T x) { return static_cast<float>(x); });
      sum(slice, selections, pair_offsets, begin, end, partials);
    }
  });
}

template <class T>
void gather(Matrix<T> rows, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
            Matrix<float> partials) {
  const int64_t width = rows.size(1);
  if (const int64_t slice = slice_of(selections.count(), rows.size(0), width); slice > 0)
    return gather_by_slices(rows, selections, pair_offsets, slice, partials);
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
