// SPDX-License-Identifier: Apache-2.0
// Selections in the order of a key (the row that they read, or a bucket of rows), by counting: one pass counts them by
// key, one places them. Both are parallel over chunks of pairs and stable, so the order depends neither on the chunks
// nor on the threads. It pays where keys are few beside selections; the counters of all keys and chunks are cleared
// each time.
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

// Calls place(at, selection, source, i), in parallel, with each contribution's place `at` in the order of
// key_of(selection), which is below `keys`; and before that list(key, begin, end) with the places of each key in turn.
// places (chunks, keys) is scratch. Returns the number of contributions.
template <class Count, class KeyOf, class List, class Place>
Count place_by_key(std::span<const GradientPiece> pieces, int64_t keys, int64_t chunks, Count* places,
                   const KeyOf& key_of, const List& list, const Place& place) {
  const int64_t pairs = count_pairs(pieces);
  for_chunks(pairs, chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    Count* const counts = places + chunk * keys;
    std::fill_n(counts, keys, Count{0});
    for_contributions(pieces, begin, end, [=](Selection selection, int32_t, int64_t) { ++counts[key_of(selection)]; });
  });
  Count next = 0;
  for (int64_t key = 0; key < keys; ++key) {
    const Count first = next;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) next += std::exchange(places[chunk * keys + key], next);
    list(key, first, next);
  }
  for_chunks(pairs, chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    Count* const at = places + chunk * keys;
    for_contributions(pieces, begin, end, [=](Selection selection, int32_t source, int64_t i) {
      place(at[key_of(selection)]++, selection, source, i);
    });
  });
  return next;
}

}  // namespace pkmesh::PKM_CPU
