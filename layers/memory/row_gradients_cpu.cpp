// SPDX-License-Identifier: Apache-2.0
// Contributions are dealt into buckets of consecutive rows, as many buckets as a core can write to at a time; then each
// bucket is sorted by itself, in the core's cache. Both steps are stable and in parallel, so no thread changes the
// order. (Where rows are few and read often, a counter for each of them is better: layers/memory/row_order.h.)
#include <algorithm>
#include <bit>
#include <span>
#include <utility>
#include <vector>

#include "layers/memory/row_gradients.h"
#include "layers/memory/row_order.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

class BucketSort {
 public:
  // Returns the number of rows that have contributions. records: memory for all of those.
  int64_t sort(std::span<const GradientPiece> pieces, int64_t local_rows, RowRecord* records,
               const RowGradientsOut& out) {
    const int64_t total = deal(pieces, local_rows, records);
    const int64_t buckets = std::ssize(begins_) - 1;
    // A thread takes the buckets that begin in its part of the records: usage is skewed.
    parallel_for(0, total, kMinimumChunk, [&](int64_t from, int64_t to) {
      Workspace& space = workspace();
      const auto first = std::lower_bound(begins_.begin(), begins_.end() - 1, from) - begins_.begin();
      for (int64_t b = first; b < buckets && begins_[b] < to; ++b) {
        const Bucket bucket = {b << shift_, std::min(local_rows, (b + 1) << shift_) - (b << shift_), begins_[b],
                               begins_[b + 1] - begins_[b]};
        const int64_t at = std::min(bucket.first_row, bucket.begin);  // no more rows than that come before it
        touched_[b] = bucket.rows <= kFewer * bucket.count
                          ? sort_by_counting(bucket, records + bucket.begin, at, space, out)
                          : sort_by_comparing(bucket, records + bucket.begin, at, space, out);
      }
    });
    int64_t touched = 0;
    for (int64_t b = 0; b < buckets; ++b) {  // what the buckets have listed, without gaps
      if (begins_[b] == begins_[b + 1]) continue;
      const int64_t at = std::min(b << shift_, begins_[b]);
      std::copy_n(&out.rows[at], touched_[b], &out.rows[touched]);
      std::copy_n(&out.offsets[at], touched_[b], &out.offsets[touched]);
      touched += touched_[b];
    }
    out.offsets[touched] = total;
    return touched;
  }

 private:
  static constexpr int kLeastShift = 9;  // rows of a bucket: a counter each
  static constexpr int kMostBucketBits = 11;
  static constexpr int64_t kFewer = 4;            // times fewer records than rows: counting would look at too many rows
  static constexpr int64_t kMinimumChunk = 8192;  // contributions

  struct Bucket {
    int64_t first_row;
    int64_t rows;
    int64_t begin;  // of its records
    int64_t count;
  };
  // A thread's.
  struct Workspace {
    std::vector<int32_t> counters;  // of a bucket's rows
    std::vector<uint64_t> keys;     // of a bucket's records
  };
  static Workspace& workspace() {
    thread_local Workspace space;
    return space;
  }

  static void place(int64_t at, const RowRecord& record, const RowGradientsOut& out) {
    out.weights[at] = record.weight;
    out.sources[at] = record.source;
    if (!out.order.empty()) out.order[at] = record.selection;
  }

  // The contributions as records, bucket by bucket. Returns their number.
  int64_t deal(std::span<const GradientPiece> pieces, int64_t local_rows, RowRecord* records) {
    const int64_t last_row = std::max<int64_t>(local_rows, 1) - 1;
    shift_ = std::max(kLeastShift, static_cast<int>(std::bit_width(static_cast<uint64_t>(last_row))) - kMostBucketBits);
    const int64_t buckets = (last_row >> shift_) + 1;
    int64_t total = 0;
    for (const GradientPiece& piece : pieces) total += piece.selections.count();
    const int64_t chunks = std::clamp<int64_t>(total / kMinimumChunk, 1, threads());
    begins_.resize(static_cast<size_t>(buckets + 1));
    touched_.resize(static_cast<size_t>(buckets));
    places_.resize(static_cast<size_t>(chunks * buckets));
    begins_[buckets] = place_by_key(
        pieces, buckets, chunks, places_.data(),
        [shift = shift_](Selection selection) { return selection.row >> shift; },
        [this](int64_t bucket, int64_t begin, int64_t) { begins_[bucket] = begin; },
        [=](int64_t at, Selection selection, int32_t source, int64_t i) {
          records[at] = {selection.row, selection.weight, source, static_cast<int32_t>(i)};
        });
    return total;
  }

  // Sorts a bucket's records and lists its rows from place `at` on. Returns the number of rows. No more places are
  // written than the bucket has rows or records.
  static int64_t sort_by_counting(const Bucket& bucket, const RowRecord* records, int64_t at, Workspace& space,
                                  const RowGradientsOut& out) {
    space.counters.assign(static_cast<size_t>(bucket.rows), 0);
    int32_t* const counters = space.counters.data();
    for (int64_t i = 0; i < bucket.count; ++i) ++counters[records[i].row - bucket.first_row];
    int64_t touched = 0;
    auto next = static_cast<int32_t>(bucket.begin);
    for (int64_t row = 0; row < bucket.rows && touched < bucket.count; ++row) {
      out.rows[at + touched] = static_cast<int32_t>(bucket.first_row + row);
      out.offsets[at + touched] = next;
      touched += counters[row] > 0 ? 1 : 0;
      next += std::exchange(counters[row], next);
    }
    for (int64_t i = 0; i < bucket.count; ++i) place(counters[records[i].row - bucket.first_row]++, records[i], out);
    return touched;
  }

  // The same for few contributions to many rows.
  static int64_t sort_by_comparing(const Bucket& bucket, const RowRecord* records, int64_t at, Workspace& space,
                                   const RowGradientsOut& out) {
    // Room for as many as come here at most: how many they are differs from step to step.
    space.keys.resize(static_cast<size_t>(bucket.rows / kFewer + 1));
    const std::span<uint64_t> keys(space.keys.data(), static_cast<size_t>(bucket.count));
    for (int64_t i = 0; i < bucket.count; ++i)
      keys[static_cast<size_t>(i)] = static_cast<uint64_t>(records[i].row) << 32 | static_cast<uint64_t>(i);
    std::ranges::sort(keys);
    int64_t touched = 0;
    for (int64_t i = 0; i < bucket.count; ++i) {
      const auto row = static_cast<int32_t>(keys[static_cast<size_t>(i)] >> 32);
      if (touched == 0 || out.rows[at + touched - 1] != row) {
        out.rows[at + touched] = row;
        out.offsets[at + touched++] = bucket.begin + i;
      }
      place(bucket.begin + i, records[static_cast<uint32_t>(keys[static_cast<size_t>(i)])], out);
    }
    return touched;
  }

  // Kept from call to call.
  int shift_ = 0;                 // of a row's number to its bucket's
  std::vector<int64_t> begins_;   // (buckets + 1) where the records of each begin
  std::vector<int64_t> touched_;  // (buckets) rows that have any
  std::vector<int64_t> places_;   // (chunks, buckets)
};

}  // namespace

void sort_by_row(Stream&, std::span<const GradientPiece> pieces, int64_t local_rows, Vector<RowRecord> records,
                 Vector<RowRecord>, const RowGradientsOut& out, int64_t& count) {
  thread_local BucketSort memory;  // kept from call to call
  count = memory.sort(pieces, local_rows, records.data(), out);
  out.touched[0] = count;
}

}  // namespace pkmesh::PKM_CPU
