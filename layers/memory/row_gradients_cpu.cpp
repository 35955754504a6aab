// SPDX-License-Identifier: Apache-2.0
// A radix sort by row, least significant digit first, each pass stable and in parallel over chunks of records: two or
// three passes over 12 bytes per selection, whatever the size of the table. (Digits of equal width, or a counter per
// row where rows are few, were no faster on the whole: docs/benchmarks.md.)
#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "layers/memory/row_gradients.h"
#include "layers/memory/row_order.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int kDigitBits = 11;
constexpr int64_t kDigits = int64_t{1} << kDigitBits;
constexpr int64_t kMinimumChunk = 8192;  // records

void collect(std::span<const GradientPiece> pieces, int64_t chunks, Vector<RowRecord> records) {
  int64_t first_record = 0;
  for (const GradientPiece& piece : pieces) {
    RowRecord* const to = records.data() + first_record;
    for_chunks(piece.pair_offsets.count() - 1, chunks, [&](int64_t, int64_t begin, int64_t end) {
      int64_t next = piece.pair_offsets[begin];
      for_contributions({&piece, 1}, begin, end, [&](Selection selection, int32_t source, int64_t i) {
        to[next++] = {selection.row, static_cast<int32_t>(first_record + i), source};
      });
    });
    first_record += piece.selections.count();
  }
}

// `to` = `from` in the stable order of the digit at `shift`. places (chunks, kDigits) is scratch.
void sort_by_digit(Vector<const RowRecord> from, Vector<RowRecord> to, int shift, int64_t chunks, int32_t* places) {
  const auto digit = [=](const RowRecord& record) { return (record.row >> shift) & (kDigits - 1); };
  for_chunks(from.count(), chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    int32_t* const counts = places + chunk * kDigits;
    std::fill_n(counts, kDigits, 0);
    for (int64_t i = begin; i < end; ++i) ++counts[digit(from[i])];
  });
  int32_t next = 0;
  for (int64_t value = 0; value < kDigits; ++value)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) next += std::exchange(places[chunk * kDigits + value], next);
  for_chunks(from.count(), chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    int32_t* const place = places + chunk * kDigits;
    for (int64_t i = begin; i < end; ++i) to[place[digit(from[i])]++] = from[i];
  });
}

// Of the i-th selection, counted over all pieces.
float weight_of(std::span<const GradientPiece> pieces, int64_t i) {
  while (i >= pieces.front().selections.count()) {
    i -= pieces.front().selections.count();
    pieces = pieces.subspan(1);
  }
  return pieces.front().selections[i].weight;
}

// The sorted records by what they are, and each row once. Returns the number of rows.
int64_t list_rows(Vector<const RowRecord> records, std::span<const GradientPiece> pieces, int64_t chunks,
                  const RowGradientsOut& out) {
  const auto begins_row = [&](int64_t i) { return i == 0 || records[i].row != records[i - 1].row; };
  std::vector<int64_t> first_row(static_cast<size_t>(chunks) + 1, 0);
  for_chunks(records.count(), chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    int64_t rows = 0;
    for (int64_t i = begin; i < end; ++i) rows += begins_row(i) ? 1 : 0;
    first_row[chunk + 1] = rows;
  });
  for (int64_t chunk = 0; chunk < chunks; ++chunk) first_row[chunk + 1] += first_row[chunk];
  for_chunks(records.count(), chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    int64_t row = first_row[chunk];
    for (int64_t i = begin; i < end; ++i) {
      out.weights[i] = weight_of(pieces, records[i].selection);
      out.selections[i] = records[i].selection;
      out.sources[i] = records[i].source;
      if (!begins_row(i)) continue;
      out.rows[row] = records[i].row;
      out.offsets[row++] = i;
    }
  });
  return first_row[chunks];
}

}  // namespace

void sort_by_row(Stream&, std::span<const GradientPiece> pieces, int64_t local_rows, Vector<RowRecord> records,
                 Vector<RowRecord> scratch, const RowGradientsOut& out, int64_t& count) {
  const int64_t chunks = std::clamp<int64_t>(records.count() / kMinimumChunk, 1, threads());
  const int bits = local_rows <= 1 ? 0 : std::bit_width(static_cast<uint64_t>(local_rows - 1));
  thread_local std::vector<int32_t> places;  // kept from call to call
  places.resize(std::max(places.size(), static_cast<size_t>(chunks * kDigits)));
  collect(pieces, chunks, records);
  for (int shift = 0; shift < bits; shift += kDigitBits) {
    sort_by_digit(records, scratch, shift, chunks, places.data());
    std::swap(records, scratch);
  }
  count = list_rows(records, pieces, chunks, out);
  out.offsets[count] = records.count();
  out.touched[0] = count;
}

}  // namespace pkmesh::PKM_CPU
