// SPDX-License-Identifier: Apache-2.0
// Uses of rows are placed in the order of the rows; each thread takes rows with as many uses. Output gradients that are
// few stay in the cache as they are. Of many, a slice of columns at a time is copied to lie in one piece, which does.
// How they are cut depends on the sizes alone, so the bits do too.
#include <algorithm>
#include <cstring>
#include <vector>

#include "layers/memory/row_kernels.h"
#include "layers/memory/row_order.h"
#include "layers/memory/sum_by_row.h"
#include "runtime/buffer.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kManyBytes = int64_t{1} << 20;  // of output gradients: more than stay in most second-level caches
constexpr int kVectors = 2;                       // of a slice's columns
constexpr int64_t kSlice = kVectors * kLanes;

// The selections in the order of the rows that they read: of row rows[u], those at [offsets[u], offsets[u + 1]). What
// is read again and again lies together. Selection i is at place_of[i].
struct Use {
  int32_t pair;
  float weight;
};
struct Uses {
  std::vector<int32_t> places, rows, place_of;
  std::vector<int64_t> offsets;
  std::vector<Use> uses;
  std::vector<float> products;
  int64_t touched = 0;  // rows

  void sort(const GradientPiece& piece, int64_t local_rows) {
    const int64_t count = piece.selections.count();
    // Each chunk has a counter per row, which is to be fewer than its selections.
    const int64_t chunks = std::clamp<int64_t>(count / std::max<int64_t>(2 * local_rows, 1), 1, threads());
    places.resize(static_cast<size_t>(chunks * local_rows));
    rows.resize(static_cast<size_t>(local_rows));
    offsets.resize(static_cast<size_t>(local_rows + 1));
    place_of.resize(static_cast<size_t>(count));
    uses.resize(place_of.size());
    products.resize(place_of.size());
    Use* const use_at = uses.data();
    int32_t* const place = place_of.data();
    int64_t listed = 0;
    const auto list = [&](int64_t row, int32_t begin, int32_t end) {
      if (begin == end) return;
      rows[listed] = static_cast<int32_t>(row);
      offsets[listed++] = begin;
    };
    const auto row_of = [](Selection selection) { return selection.row; };
    const int32_t total = place_by_key({&piece, 1}, local_rows, chunks, places.data(), row_of, list,
                                       [=](int32_t at, Selection selection, int32_t pair, int64_t i) {
                                         use_at[at] = {pair, selection.weight};
                                         place[i] = at;
                                       });
    offsets[listed] = total;
    touched = listed;
  }
};

// A row's gradient in the making, every second contribution in one half: each addition waits for the one before it.
struct SliceSum {
  Lanes halves[2][kVectors] = {};
};

// kUses uses of a slice of a row: products (+)= their dot products with it, and sum += weight * gradient. slice (pairs,
// kSlice).
template <int kUses>
[[gnu::always_inline]] inline void take_slice(const Lanes* row, SliceSum& sum, const float* slice, const Use* uses,
                                              bool first, float* products) {
  Lanes dots[kUses] = {};
  for (int r = 0; r < kUses; ++r) {
    const float* const gradient = slice + uses[r].pair * kSlice;
    for (int v = 0; v < kVectors; ++v) {
      const Lanes lanes = load_lanes(gradient + v * kLanes);
      dots[r] += row[v] * lanes;
      sum.halves[r % 2][v] += uses[r].weight * lanes;
    }
  }
  if constexpr (kUses == 4) {
    FourLanes totals = sum_lanes_of_four(dots);
    if (!first) {
      FourLanes before;
      std::memcpy(&before, products, sizeof(before));
      totals += before;
    }
    std::memcpy(products, &totals, sizeof(totals));
  } else {
    for (int r = 0; r < kUses; ++r) products[r] = sum_lanes(dots[r]) + (first ? 0.0F : products[r]);
  }
}

template <class T>
class ByRow {
 public:
  ByRow(Matrix<T> rows, Uses& uses, Matrix<const float> gradients, Matrix<float> sums)
      : rows_(rows), uses_(uses), gradients_(gradients), sums_(sums), width_(rows.size(1)) {}

  // The rows whose first use is one of [from, to).
  void run(int64_t from, int64_t to) const {
    const auto row_at = [&](int64_t use) {
      return std::lower_bound(uses_.offsets.begin(), uses_.offsets.begin() + uses_.touched, use) -
             uses_.offsets.begin();
    };
    const int64_t first = row_at(from);
    const int64_t last = row_at(to);
    if (first == last) return;
    if (gradients_.count() * static_cast<int64_t>(sizeof(float)) < kManyBytes || width_ < 2 * kSlice)
      whole_rows(first, last, 0);
    else
      slices(first, last);
  }

 private:
  void slices(int64_t first, int64_t last) const {
    thread_local Scratch memory;
    const int64_t pairs = gradients_.size(0);
    float* const slice = memory.take<float>(pairs * kSlice);  // a pair's part is whole cache lines
    int64_t column = 0;
    for (; column + kSlice <= width_; column += kSlice) {
      for (int64_t pair = 0; pair < pairs; ++pair)
        std::copy_n(&gradients_(pair, column), kSlice, slice + pair * kSlice);
      for (int64_t u = first; u < last; ++u) slice_of_row(u, column, std::min(u + kAhead, last - 1), slice);
    }
    if (column < width_) whole_rows(first, last, column);
  }

  static constexpr int64_t kAhead = 8;  // rows: their lines lie far apart, where the hardware foresees nothing

  void slice_of_row(int64_t u, int64_t column, int64_t next, const float* slice) const {
    __builtin_prefetch(rows_.data() + uses_.rows[next] * width_ + column);
    __builtin_prefetch(&sums_(next, column), 1);
    const T* const from = rows_.data() + uses_.rows[u] * width_ + column;
    Lanes row[kVectors];
    SliceSum sum;
    for (int v = 0; v < kVectors; ++v) row[v] = load_lanes(from + v * kLanes);
    const int64_t end = uses_.offsets[u + 1];
    int64_t i = uses_.offsets[u];
    for (; i + 4 <= end; i += 4) take_slice<4>(row, sum, slice, &uses_.uses[i], column == 0, &uses_.products[i]);
    for (; i < end; ++i) take_slice<1>(row, sum, slice, &uses_.uses[i], column == 0, &uses_.products[i]);
    for (int v = 0; v < kVectors; ++v) store_lanes(&sums_(u, column) + v * kLanes, sum.halves[0][v] + sum.halves[1][v]);
  }

  // Columns [column, width) of rows and gradients as they lie. With column 0, the bits are those of dot_rows() and
  // weighted_sum().
  void whole_rows(int64_t first, int64_t last, int64_t column) const {
    thread_local std::vector<float> wide;  // kept from call to call
    const int64_t width = width_ - column;
    for (int64_t u = first; u < last; ++u) {
      const float* const row = widened(rows_.data() + uses_.rows[u] * width_ + column, width, wide);
      const int64_t begin = uses_.offsets[u];
      const int64_t count = uses_.offsets[u + 1] - begin;
      const auto use_at = [&](int64_t i) {
        const Use& use = uses_.uses[begin + i];
        return WeightedRow<float>{&gradients_(use.pair, column), use.weight};
      };
      weighted_sum(count, 0, width, use_at, &sums_(u, column));
      for (int64_t i = 0; i < count; i += 4) {
        const int64_t batch = std::min<int64_t>(4, count - i);
        const float* four[4];
        for (int64_t r = 0; r < 4; ++r) four[r] = use_at(i + std::min(r, batch - 1)).row;
        float products[4];
        dot_rows<4>(row, four, width, products);
        for (int64_t r = 0; r < batch; ++r)
          uses_.products[begin + i + r] = column == 0 ? products[r] : uses_.products[begin + i + r] + products[r];
      }
    }
  }

  // The row as floats: itself, or in `wide`.
  static const float* widened(const float* row, int64_t, std::vector<float>&) { return row; }
  template <class Narrow>
  static const float* widened(const Narrow* row, int64_t width, std::vector<float>& wide) {
    wide.resize(static_cast<size_t>(width));
    std::transform(row, row + width, wide.begin(), [](Narrow x) { return static_cast<float>(x); });
    return wide.data();
  }

  Matrix<T> rows_;
  Uses& uses_;
  Matrix<const float> gradients_;
  Matrix<float> sums_;
  int64_t width_;
};

}  // namespace

void sum_by_row(Stream&, TableRows rows, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
                Matrix<const float> gradients, Vector<float> dweights, const RowSums& out, int64_t& count) {
  thread_local Uses memory;  // kept from call to call
  Uses& uses = memory;       // this thread's, also in the loops below
  const int64_t local_rows = std::visit([](auto matrix) { return matrix.size(0); }, rows);
  uses.sort({selections, pair_offsets, 0}, local_rows);
  std::copy_n(uses.rows.data(), uses.touched, out.rows.data());
  constexpr int64_t kGrain = 256;
  parallel_for(0, selections.count(), kGrain, [&](int64_t from, int64_t to) {
    std::visit([&](auto matrix) { ByRow(matrix, uses, gradients, out.sums).run(from, to); }, rows);
  });
  parallel_for(0, selections.count(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) dweights[i] = uses.products[uses.place_of[i]];
  });
  count = uses.touched;
}

}  // namespace pkmesh::PKM_CPU
