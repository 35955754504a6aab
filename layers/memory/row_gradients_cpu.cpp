// SPDX-License-Identifier: Apache-2.0
// A radix sort by row, least significant digit first, each pass stable and in parallel over chunks of records: two or
// three passes over 12 bytes per selection, whatever the size of the table.
#include <array>
#include <bit>
#include <utility>
#include <vector>

#include "layers/memory/row_gradients.h"
#include "runtime/parallel.h"

namespace pkmesh::cpu {
namespace {

constexpr int kDigitBits = 11;
constexpr int64_t kDigits = int64_t{1} << kDigitBits;
constexpr int64_t kMinimumChunk = 8192;  // records

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

// `to` = `from` in the stable order of the digit at `shift`.
void sort_by_digit(Vector<const RowRecord> from, Vector<RowRecord> to, int shift, int64_t chunks,
                   std::vector<std::array<int32_t, kDigits>>& places) {
  const int64_t count = from.count();
  const auto digit = [shift](const RowRecord& record) { return (record.row >> shift) & (kDigits - 1); };
  parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      auto& counts = places[static_cast<size_t>(chunk)];
      counts.fill(0);
      for (int64_t i = count * chunk / chunks; i < count * (chunk + 1) / chunks; ++i) ++counts[digit(from[i])];
    }
  });
  int32_t next = 0;
  for (int64_t value = 0; value < kDigits; ++value)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) next += std::exchange(places[chunk][value], next);
  parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      auto& place = places[static_cast<size_t>(chunk)];
      for (int64_t i = count * chunk / chunks; i < count * (chunk + 1) / chunks; ++i)
        to[place[digit(from[i])]++] = from[i];
    }
  });
}

}  // namespace

void sort_by_row(Stream&, std::span<const GradientPiece> pieces, int64_t local_rows, Vector<RowRecord> records,
                 Vector<RowRecord> scratch, const RowGradientsOut& out, int64_t& count) {
  collect(pieces, records);
  const int64_t chunks = std::clamp<int64_t>(records.count() / kMinimumChunk, 1, threads());
  thread_local std::vector<std::array<int32_t, kDigits>> places;  // kept from call to call
  places.resize(std::max(places.size(), static_cast<size_t>(chunks)));
  const int bits = local_rows <= 1 ? 0 : std::bit_width(static_cast<uint64_t>(local_rows - 1));
  for (int shift = 0; shift < bits; shift += kDigitBits) {
    sort_by_digit(records, scratch, shift, chunks, places);
    std::swap(records, scratch);
  }
  count = 0;
  int32_t last = -1;
  for (int64_t i = 0; i < records.count(); ++i) {
    out.weights[i] = records[i].weight;
    out.sources[i] = records[i].source;
    if (records[i].row == last) continue;
    last = records[i].row;
    out.rows[count] = last;
    out.offsets[count++] = i;
  }
  out.offsets[count] = records.count();
  out.touched[0] = count;
}

}  // namespace pkmesh::cpu
