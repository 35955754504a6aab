// SPDX-License-Identifier: Apache-2.0
// A sharded table of value vectors. A row lives once: on the owner that the placement names, together with what was
// read from it (usage) and what its gradient is made of until the next update (pending). Nothing here is of the size of
// the whole table but a bit per slot (best_), and nothing walks all rows in a step.
//
// Rows start as N(0, dv^-1/2), a function of (seed, table name, global row): the same table on any number of ranks.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/placement.h"
#include "layers/context.h"
#include "layers/memory/pooled.h"
#include "layers/memory/row_gradients.h"
#include "layers/memory/sum_by_row.h"
#include "runtime/buffer.h"
#include "runtime/random.h"

namespace pkmesh {

enum class RowType { kFloat, kBf16, kFp16 };
int64_t bytes_of(RowType type);  // of one element

struct TableShape {
  std::string name;   // layers that name one table share it
  int64_t slots = 0;  // N rows, over all ranks; < 2^31
  int64_t width = 0;  // dv
  PlacementKind placement = PlacementKind::kHash;
  RowType type = RowType::kFloat;
};

PKM_KERNEL(count_usage, Vector<const Selection> selections, Vector<uint32_t> counts, Vector<float> weights)
// Sets bit slots(t, s) % 32 of word slots(t, s) / 32 for every neighbours-th selection s of each token.
PKM_KERNEL(mark_best, Matrix<const int32_t> slots, int64_t neighbours, Vector<uint32_t> bits)
// Row l = random numbers N(0, scale) of the owner's l-th row, keyed by the row's number in the whole table.
PKM_KERNEL(draw_rows, const Random& random, float scale, const Placement& placement, int rank, TableRows rows)

class ValueTable {
 public:
  // Makes this rank's rows. Throws UserError if they do not fit in memory.
  ValueTable(const TableShape& shape, const Communicator& world, Device device, uint64_t seed);
  ValueTable(const ValueTable&) = delete;
  ValueTable& operator=(const ValueTable&) = delete;

  const TableShape& shape() const { return shape_; }
  const Placement& placement() const { return placement_; }
  int rank() const { return rank_; }
  int64_t local_rows() const { return placement_.local_rows(rank_); }
  TableRows rows() const;  // (local rows, dv)
  int32_t global_row(int64_t local) const { return placement_.global(rank_, static_cast<int32_t>(local)); }

  // One row as floats (dv); a 16-bit row is rounded to nearest when written. For tests, on the CPU.
  void read_row(int64_t local, std::span<float> out) const;
  void write_row(int64_t local, std::span<const float> values);

  // --- the gradient, from the backward passes of a step to its update ---
  // Memory for the output gradients of `pairs` pairs, (pairs, dv), until backward() keeps it.
  Matrix<float> take_gradients(Stream& stream, int64_t pairs);
  // A backward pass of pairs whose output gradients stand in the memory last taken, where they stay until the update:
  // dweights (M) become those of the selections, and what was read becomes pending. With context.move_rows, for which
  // this must be the step's only backward pass of the table, the rows move now, if they may: a row then comes to the
  // core once for its dweights and its update. The dweights have the same bits either way. Collective then.
  void backward(StepContext& context, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
                Vector<float> dweights);
  // The same of d_output (pairs, dv), which need not stay: the rows' gradients do, one per row that was read. For rows
  // that are read often; see sums().
  void backward_by_row(Stream& stream, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
                       Matrix<const float> d_output, Vector<float> dweights);
  // Whether that is the better way where `selections` are made over all ranks: on the CPU, if rows are read often.
  bool sums(int64_t selections) const;
  // All that is pending, by row; sorted once, until more is added or it is forgotten.
  const RowGradients& row_gradients(Stream& stream);
  void forget_pending();

  // --- usage ---
  static constexpr int64_t kUsageBytes = sizeof(uint32_t) + sizeof(float);  // per row
  void count_usage(Stream& stream, Vector<const Selection> selections);
  // Since the last reset_usage(), per local row: how often it was selected, modulo 2^32, and the sum of its softmax
  // weights, in fp32: near 2^24 selections of one row it stops growing. On the table's device.
  std::span<const uint32_t> usage_counts() const { return usage_counts_.span(); }
  std::span<const float> usage_weights() const { return usage_weights_.span(); }
  // Marks the slots that were the best of a head: the first of every `neighbours` in slots (T, H*k).
  void mark_best(Stream& stream, Matrix<const int32_t> slots, int64_t neighbours);
  // Per local row, 1 if a token of any rank had it as the best of a head since the last reset_usage(). Collective.
  std::vector<uint8_t> best_rows(Stream& stream, Communicator& world) const;
  void reset_usage(Stream& stream);

 private:
  void initialise(uint64_t seed);
  // Adds sums of rows that an earlier pass of this step has read to what it left, so that a step holds each row once
  // however many passes it has, and moves the others, whose count it returns, together at the beginning of `sums`.
  int64_t fold(const RowSums& sums, int64_t count);

  TableShape shape_;
  Placement placement_;
  int rank_;
  Device device_;
  std::variant<Buffer<float>, Buffer<bf16>, Buffer<fp16>> rows_;  // as TableRows
  Buffer<uint32_t> usage_counts_;
  Buffer<float> usage_weights_;
  Buffer<uint32_t> best_;  // a bit per slot of the whole table: what this rank's tokens had as the best of a head
  // What is pending outlives the micro-batch's arena.
  Arena arena_;
  Buffer<float> gradients_;      // (at least kept + taken, dv); grows in the first steps
  int64_t gradients_kept_ = 0;   // pairs, or rows in their place
  int64_t gradients_taken_ = 0;  // pairs after them that take_gradients() gave and backward() has yet to claim
  std::vector<GradientPiece> pieces_;
  std::vector<int32_t> places_;  // of rows that backward_by_row() read in this step, among the gradients; -1: of none
  std::optional<RowGradients> sorted_;
};

}  // namespace pkmesh
