// SPDX-License-Identifier: Apache-2.0
// The gather of rows that are read often, in blocks of rows and columns that a core keeps in its own cache: what is
// read by token comes from the cache that cores share, at the mercy of the others. A block is copied, so that it lies
// in one piece; as it lies in the table, its lines share a few of the cache's sets.
//
// How a table is cut depends on sizes and on the width of vectors alone, and so do the bits: a pair's sum takes its
// rows by block of rows, and in a block in the order of its selections. How much is read is one of the sizes: the last
// bits of a pair's sum may change with what is read beside it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "comm/route.h"
#include "layers/memory/row_kernels.h"
#include "layers/memory/sum_by_row.h"
#include "runtime/buffer.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {

// A block's columns are two vectors. Of float it takes 256 KiB, half of a small second-level cache; with AVX-512, whose
// CPUs have larger ones, 512 KiB.
constexpr int64_t kBlockRows = 4096;
constexpr int64_t kBlockColumns = 2 * kLanes;

inline int64_t blocks_of(int64_t rows) {
  return (rows + kBlockRows - 1) / kBlockRows;
}

// Whether it pays: the copies, and sums that are taken up again with each block of rows. Not if all rows fit anyway.
inline bool gathers_in_blocks(int64_t selections, int64_t pairs, int64_t rows, int64_t width) {
  constexpr int64_t kManySelections = 16;  // of a pair in a block
  return rows * width > kBlockRows * kBlockColumns && read_often(selections, rows) &&
         selections >= kManySelections * pairs * blocks_of(rows);
}

// Selections by block, and in a block by pair: those of pair p in block b are selections [offsets(b, p), offsets(b,
// p+1)), their rows counted from the block's first. offsets (blocks, pairs + 1).
struct DealtSelections {
  std::vector<Selection> selections;
  std::vector<int32_t> offsets;

  void deal(Vector<const Selection> from, Vector<const int32_t> pair_offsets, int64_t blocks) {
    const int64_t pairs = pair_offsets.count() - 1;
    selections.resize(static_cast<size_t>(from.count()));
    offsets.assign(static_cast<size_t>(blocks * (pairs + 1)), 0);
    Selection* const to = selections.data();
    int32_t* const next = offsets.data() + 1;  // of a block and pair: first its count, then where its next one goes
    const auto for_selections = [&](const auto& body) {
      parallel_for(0, pairs, 16, [&](int64_t begin, int64_t end) {
        for (int64_t pair = begin; pair < end; ++pair)
          for (int64_t i = pair_offsets[pair]; i < pair_offsets[pair + 1]; ++i) {
            const int64_t block = from[i].row / kBlockRows;
            body(from[i], block, next[block * (pairs + 1) + pair]);
          }
      });
    };
    for_selections([](const Selection&, int64_t, int32_t& count) { ++count; });
    int32_t before = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      offsets[static_cast<size_t>(block * (pairs + 1))] = before;
      for (int64_t pair = 0; pair < pairs; ++pair) before += std::exchange(next[block * (pairs + 1) + pair], before);
    }
    for_selections([to](const Selection& selection, int64_t block, int32_t& at) {
      to[at++] = {static_cast<int32_t>(selection.row - block * kBlockRows), selection.weight};
    });
  }
};

// kBlockColumns columns of a table and of the partials, of which `columns` are theirs, from `column` on.
class ColumnsOfBlock {
 public:
  ColumnsOfBlock(int64_t column, int64_t width)
      : column_(column), columns_(std::min(kBlockColumns, width - column)), copy_(memory_of_this_thread()) {}

  // Copies rows [begin, end), at most kBlockRows of them. What is behind the table's columns is summed and never used.
  template <class T>
  void take(Matrix<T> rows, int64_t begin, int64_t end) {
    float* to = copy_;
    for (int64_t row = begin; row < end; ++row, to += kBlockColumns) {
      prefetch(&rows(std::min(row + kAhead, end - 1), column_));
      const T* const from = &rows(row, column_);
      std::transform(from, from + columns_, to, [](T x) { return static_cast<float>(x); });
    }
  }

  // partials [begin, end) (kFirst ? = : +=) the sums of their selections in the block.
  template <bool kFirst>
  void add(const Selection* selections, const int32_t* offsets, int64_t begin, int64_t end,
           Matrix<float> partials) const {
    // An addition waits four cycles for the one before it, so two pairs are summed by turns. Four were slower: what the
    // longer lists have left is summed alone.
    constexpr int kPairs = 2;
    int64_t pair = begin;
    for (; pair + kPairs <= end; pair += kPairs) {
      for (int64_t p = 0; p < kPairs; ++p) prefetch(&partials(std::min(pair + p + kAhead, end - 1), column_));
      add_pairs<kPairs, kFirst>(selections, offsets, pair, partials);
    }
    for (; pair < end; ++pair) add_pairs<1, kFirst>(selections, offsets, pair, partials);
  }

 private:
  static constexpr int kVectors = kBlockColumns / kLanes;
  static constexpr int64_t kAhead = 8;  // rows, pairs: their lines lie far apart, where the hardware foresees nothing

  static float* memory_of_this_thread() {  // a row is whole cache lines
    thread_local Scratch memory;
    return memory.take<float>(kBlockRows * kBlockColumns);
  }

  template <class T>
  [[gnu::always_inline]] static void prefetch(const T* columns) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t i = 0; i < kBlockColumns; i += kLine) __builtin_prefetch(columns + i);
  }

  // Sums stay in registers; each adds its rows in order.
  template <int kPairs, bool kFirst>
  void add_pairs(const Selection* selections, const int32_t* offsets, int64_t pair, Matrix<float> partials) const {
    const Selection* of_pair[kPairs];
    int32_t counts[kPairs];
    Lanes sums[kPairs][kVectors];
    for (int p = 0; p < kPairs; ++p) {
      of_pair[p] = selections + offsets[pair + p];
      counts[p] = offsets[pair + p + 1] - offsets[pair + p];
      load<kFirst>(&partials(pair + p, column_), sums[p]);
    }
    const auto add_row = [&](const Selection& selection, Lanes* sum) {
      const float* const row = copy_ + selection.row * kBlockColumns;
      for (int v = 0; v < kVectors; ++v) sum[v] += selection.weight * load_lanes(row + v * kLanes);
    };
    const int32_t common = *std::min_element(counts, counts + kPairs);
    for (int32_t i = 0; i < common; ++i)
      for (int p = 0; p < kPairs; ++p) add_row(of_pair[p][i], sums[p]);
    for (int p = 0; p < kPairs; ++p) {
      for (int32_t i = common; i < counts[p]; ++i) add_row(of_pair[p][i], sums[p]);
      store(sums[p], &partials(pair + p, column_));
    }
  }

  template <bool kFirst>
  [[gnu::always_inline]] void load(const float* partial, Lanes* sum) const {
    std::array<float, kBlockColumns> space;
    if (!kFirst && columns_ < kBlockColumns) {
      std::fill(std::copy_n(partial, columns_, space.begin()), space.end(), 0.0F);
      partial = space.data();
    }
    for (int v = 0; v < kVectors; ++v) sum[v] = kFirst ? Lanes{} : load_lanes(partial + v * kLanes);
  }
  [[gnu::always_inline]] void store(const Lanes* sum, float* partial) const {
    std::array<float, kBlockColumns> space;
    float* const to = columns_ < kBlockColumns ? space.data() : partial;
    for (int v = 0; v < kVectors; ++v) store_lanes(to + v * kLanes, sum[v]);
    if (columns_ < kBlockColumns) std::copy_n(to, columns_, partial);
  }

  int64_t column_;
  int64_t columns_;
  float* copy_;  // (kBlockRows, kBlockColumns)
};

// Names and shapes are those of layers/memory/pooled.h.
template <class T>
void gather_in_blocks(Matrix<T> rows, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
                      Matrix<float> partials) {
  const int64_t blocks = blocks_of(rows.size(0));
  const int64_t pairs = partials.size(0);
  thread_local DealtSelections dealt;  // kept from call to call
  const Selection* in_order = selections.data();
  const int32_t* offsets = pair_offsets.data();
  if (blocks > 1) {
    dealt.deal(selections, pair_offsets, blocks);
    in_order = dealt.selections.data();
    offsets = dealt.offsets.data();
  }
  // A thread has columns of its own where there are enough, so that each block is copied once. Else threads that share
  // columns each make a copy, and take a share of the pairs: a copy that is read seldom costs less than an idle thread.
  const int64_t column_blocks = (rows.size(1) + kBlockColumns - 1) / kBlockColumns;
  const int64_t shares = (threads() + column_blocks - 1) / column_blocks;
  parallel_for(0, column_blocks * shares, 1, [&](int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) {
      ColumnsOfBlock columns(unit / shares * kBlockColumns, rows.size(1));
      const int64_t begin = pairs * (unit % shares) / shares;
      const int64_t end = pairs * (unit % shares + 1) / shares;
      for (int64_t block = 0; block < blocks; ++block) {
        columns.take(rows, block * kBlockRows, std::min((block + 1) * kBlockRows, rows.size(0)));
        const int32_t* const of_block = offsets + block * (pairs + 1);
        if (block == 0)
          columns.template add<true>(in_order, of_block, begin, end, partials);
        else
          columns.template add<false>(in_order, of_block, begin, end, partials);
      }
    }
  });
}

}  // namespace pkmesh::PKM_CPU
