// SPDX-License-Identifier: Apache-2.0
// Adam for the rows of a value table that a step has read. A row, its moments and its counter live on the row's owner;
// a step costs what the touched rows cost, whatever the table's size. Each row's gradient is summed from its
// contributions in a core's own cache and consumed at once: it is never stored.
//
// What is stored in 16 bits is rounded stochastically with numbers keyed by (seed, table, step, global row, column). So
// no result depends on the rank count, the placement or the threads.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "comm/placement.h"
#include "layers/memory/pooled.h"
#include "layers/memory/row_gradients.h"
#include "runtime/bf16.h"
#include "runtime/buffer.h"
#include "runtime/dispatch.h"
#include "runtime/random.h"
#include "runtime/view.h"

namespace pkmesh {

constexpr int64_t kMostGpuRowWidth = 12000;  // a row's gradient in the 48 KiB that every GPU lends a block

struct RowAdamOptions {
  enum class Update {
    kSparse,  // lazy: rows without a contribution keep value and moments (torch.optim.SparseAdam)
    kDense,   // rows without a contribution move by their momentum (torch.optim.Adam); walks the whole shard
  };
  enum class Correction {
    kGlobalStep,  // the bias correction of a row is that of the run's updates
    kRowCounter,  // ... of the number of updates that the row has had; kSparse only
  };
  enum class SecondMoment {
    kFull,     // one per element
    kRowWise,  // one fp32 per row: of the mean of g^2 over the row
  };

  Update update = Update::kSparse;
  Correction correction = Correction::kGlobalStep;
  SecondMoment second_moment = SecondMoment::kFull;
  bool bf16_moments = false;  // a row-wise second moment stays fp32
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;  // added to the root of the second moment before (kSparse) or after (kDense) its bias correction
};

// Moments, (rows, width). fp16 does not reach down to squares of gradients.
using RowMatrix = std::variant<Matrix<float>, Matrix<bf16>>;

struct RowState {
  RowMatrix first;         // (rows, width)
  RowMatrix second;        // (rows, width); kRowWise: fp32 (rows, 1)
  Vector<uint32_t> steps;  // (rows) updates so far; empty unless kRowCounter
};

// What one update needs.
struct RowUpdate {
  RowAdamOptions options;
  float scale;  // of the gradient: clipping factor / loss scale
  double lr;
  int64_t step;  // t >= 1
  Random value_rounding;
  Random first_rounding;
  Random second_rounding;
  Placement placement;  // of the table's rows, for the keys of what is rounded
  int rank;             // the owner
  PKM_HOST_DEVICE int32_t global_row(int32_t local) const { return placement.global_row(rank, local); }
};

// The arrays of a list of every row of a shard.
struct EveryRow {
  Vector<int32_t> rows;     // (rows)
  Vector<int64_t> offsets;  // (rows + 1)
  Vector<int64_t> touched;  // (1)
};

PKM_KERNEL(update_rows, const RowUpdate& update, const TableRows& values, const RowState& state,
           const RowGradients& gradients, Vector<float> dweights)
PKM_KERNEL(squares_bound, const RowGradients& gradients, Vector<double> total)
PKM_KERNEL(add_in_order, Vector<const double> terms, Vector<double> total)
PKM_KERNEL(list_every_row, const RowGradients& gradients, const EveryRow& out)

// Updates the rows that `gradients` lists. dweights (contributions), which may be empty and on a GPU must be, become
// each contribution's output gradient . its row before the update: a row that comes to the core is used for both.
void update_rows(Stream& stream, const RowUpdate& update, const TableRows& values, const RowState& state,
                 const RowGradients& gradients, Vector<float> dweights = {});

// squares[u] = sum over the columns of the squared gradient of row rows[u], as many as gradients.rows has; those behind
// the rows that were touched become 0.
PKM_OP(row_squares, const RowGradients& gradients, Vector<double> squares)

// A tensor of the optimiser's state, for checkpoints: row i of it belongs to row i of the shard.
struct StateTensor {
  std::string name;
  std::variant<Matrix<float>, Matrix<bf16>, Matrix<uint32_t>> data;
};

// Owns the moments of one shard. They are zero pages until a row is touched, so an untouched table costs none.
class RowOptimizer {
 public:
  // `table` names the table in the whole run; `rank` owns the shard.
  RowOptimizer(Device device, std::string table, const Placement& placement, int rank, int64_t width,
               const RowAdamOptions& options, uint64_t seed);

  // total[0] (on the stream's device) += sum over the touched rows, in their order, of their squared gradients: this
  // rank's share of the clipping norm and of the gate.
  void add_squares(Stream& stream, const RowGradients& gradients, Vector<double> total);
  // total[0] += something no less, which is finite only if all of these gradients are: what the gate needs to know
  // where nothing is clipped. (Near the end of float's range it may be infinite though they are not.) It costs a pass
  // over the output gradients; no row's gradient is summed.
  void add_squares_bound(Stream& stream, const RowGradients& gradients, Vector<double> total);

  // The t-th update, t >= 1, of values (rows, width) with gradients * scale; dweights as update_rows().
  void step(Stream& stream, const TableRows& values, const RowGradients& gradients, double scale, double lr,
            int64_t step, Vector<float> dweights = {});

  // "m" and "v", the first and second moments, and with kRowCounter "steps".
  std::vector<StateTensor> state() const;

  // Bytes of state (values not included).
  static int64_t bytes_per_row(const RowAdamOptions& options, int64_t width);

 private:
  RowState views() const;
  Vector<double> take_squares(int64_t rows);
  RowGradients all_rows(Stream& stream, const RowGradients& gradients);

  Device device_;
  std::string table_;
  Placement placement_;
  int rank_;
  int64_t rows_;
  int64_t width_;
  RowAdamOptions options_;
  uint64_t seed_;
  std::variant<Buffer<float>, Buffer<bf16>> first_;
  std::variant<Buffer<float>, Buffer<bf16>> second_;
  Buffer<uint32_t> steps_;
  // Scratch; grows to its size in the first steps.
  Buffer<int32_t> every_row_;     // (rows), kAll only
  Buffer<int64_t> every_offset_;  // (rows + 1), and their number
  Buffer<double> squares_;
};

}  // namespace pkmesh
