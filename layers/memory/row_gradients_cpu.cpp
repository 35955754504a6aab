// SPDX-License-Identifier: Apache-2.0
// A radix sort by row, least significant digit first, each pass stable and in parallel over chunks of records: two or
// three passes over 12 bytes per selection, whatever the size of the table. Digits are of equal width, so that their
// counters are few.
#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "layers/memory/row_gradients.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int kMostDigitBits = 11;
constexpr int64_t kMinimumChunk = 8192;  // records

// Calls body(chunk, begin, end) for `chunks` pieces of [0, count), in parallel.
template <class Body>
void for_chunks(int64_t count, int64_t chunks, const Body& body) {
  parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk)
      body(chunk, count * chunk / chunks, count * (chunk + 1) / chunks);
  });
}

void collect(std::span<const GradientPiece> pieces, Vector<RowRecord> records) {
  int64_t first_record = 0;
  for (const GradientPiece& piece : pieces) {
    parallel_for(0, piece.pair_offsets.count() - 1, 64, [&](int64_t begin, int64_t end) {
      for (int64_t pair = begin; pair < end; ++pair)
        for (int64_t i = piece.pair_offsets[pair]; i < piece.pair_offsets[pair + 1]; ++i)
          records[first_record + i] = {piece.selections[i].row, piece.selections[i].weight,
                                       static_cast<int32_t>(piece.first_source + pair)};
    });
    first_record += piece.selections.count();
  }
}

// `to` = `from` in the stable order of the digit of `bits` at `shift`. places (chunks, 2^bits) is scratch.
void sort_by_digit(Vector<const RowRecord> from, Vector<RowRecord> to, int shift, int bits, int64_t chunks,
                   int32_t* places) {
  const int64_t digits = int64_t{1} << bits;
  const auto digit = [=](const RowRecord& record) { return (record.row >> shift) & (digits - 1); };
  for_chunks(from.count(), chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    int32_t* const counts = places + chunk * digits;
    std::fill_n(counts, digits, 0);
    for (int64_t i = begin; i < end; ++i) ++counts[digit(from[i])];
  });
  int32_t next = 0;
  for (int64_t value = 0; value < digits; ++value)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) next += std::exchange(places[chunk * digits + value], next);
  for_chunks(from.count(), chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    int32_t* const place = places + chunk * digits;
    for (int64_t i = begin; i < end; ++i) to[place[digit(from[i])]++] = from[i];
  });
}

// The sorted records by what they are, and each row once. Returns the number of rows.
int64_t list_rows(Vector<const RowRecord> records, int64_t chunks, const RowGradientsOut& out) {
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
      out.weights[i] = records[i].weight;
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
  collect(pieces, records);
  const int64_t chunks = std::clamp<int64_t>(records.count() / kMinimumChunk, 1, threads());
  const int bits = local_rows <= 1 ? 0 : std::bit_width(static_cast<uint64_t>(local_rows - 1));
  const int passes = (bits + kMostDigitBits - 1) / kMostDigitBits;
  const int digit_bits = passes == 0 ? 0 : (bits + passes - 1) / passes;
  thread_local std::vector<int32_t> places;  // kept from call to call
  places.resize(std::max(places.size(), static_cast<size_t>(chunks) << digit_bits));
  for (int pass = 0; pass < passes; ++pass) {
    sort_by_digit(records, scratch, pass * digit_bits, digit_bits, chunks, places.data());
    std::swap(records, scratch);
  }
  count = list_rows(records, chunks, out);
  out.offsets[count] = records.count();
  out.touched[0] = count;
}

}  // namespace pkmesh::PKM_CPU
