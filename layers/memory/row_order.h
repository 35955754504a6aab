// SPDX-License-Identifier: Apache-2.0
// Selections in the order of the rows that they read, by counting: one pass counts them by row, one places them. Both
// are parallel over chunks of pairs and stable, so the order depends neither on the chunks nor on the threads. It pays
// where rows are few beside their selections; the counters of all rows and chunks are cleared each time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include "layers/memory/row_gradients.h"
#include "runtime/cpu.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {

// Calls body(chunk, begin, end) for `chunks` pieces of [0, count), in parallel.
template <class Body>
void for_chunks(int64_t count, int64_t chunks, const Body& body) {
  parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk)
      body(chunk, count * chunk / chunks, count * (chunk + 1) / chunks);
  });
}

// What came, in order: by piece, then by pair. Calls body(selection, source, i) for the i-th selection, of pairs
// [begin, end); both counted over all pieces.
template <class Body>
void for_contributions(std::span<const GradientPiece> pieces, int64_t begin, int64_t end, const Body& body) {
  int64_t before = 0;  // selections of earlier pieces
  for (const GradientPiece& piece : pieces) {
    const int64_t pairs = piece.pair_offsets.count() - 1;
    for (int64_t pair = std::max<int64_t>(begin, 0); pair < std::min(end, pairs); ++pair)
      for (int64_t i = piece.pair_offsets[pair]; i < piece.pair_offsets[pair + 1]; ++i)
        body(piece.selections[i], static_cast<int32_t>(piece.first_source + pair), before + i);
    begin -= pairs;
    end -= pairs;
    before += piece.selections.count();
  }
}

inline int64_t count_pairs(std::span<const GradientPiece> pieces) {
  int64_t pairs = 0;
  for (const GradientPiece& piece : pieces) pairs += piece.pair_offsets.count() - 1;
  return pairs;
}

// Calls place(at, selection, source, i), in parallel, with each contribution's place `at` in the order of rows. Lists
// the rows that have any, and where each begins. places (chunks, local_rows) is scratch. Returns the number of rows.
template <class Place>
int64_t place_by_row(std::span<const GradientPiece> pieces, int64_t local_rows, int64_t chunks, int32_t* places,
                     int32_t* rows, int64_t* offsets, const Place& place) {
  const int64_t pairs = count_pairs(pieces);
  for_chunks(pairs, chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    int32_t* const counts = places + chunk * local_rows;
    std::fill_n(counts, local_rows, 0);
    for_contributions(pieces, begin, end, [=](Selection selection, int32_t, int64_t) { ++counts[selection.row]; });
  });
  int64_t touched = 0;
  int32_t next = 0;
  for (int64_t row = 0; row < local_rows; ++row) {
    const int32_t first = next;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) next += std::exchange(places[chunk * local_rows + row], next);
    if (next == first) continue;
    rows[touched] = static_cast<int32_t>(row);
    offsets[touched++] = first;
  }
  for_chunks(pairs, chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    int32_t* const at = places + chunk * local_rows;
    for_contributions(pieces, begin, end, [=](Selection selection, int32_t source, int64_t i) {
      place(at[selection.row]++, selection, source, i);
    });
  });
  offsets[touched] = next;
  return touched;
}

}  // namespace pkmesh::PKM_CPU
