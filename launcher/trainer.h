// SPDX-License-Identifier: Apache-2.0
// The training run of one rank. N ranks compute what one rank computes: the same sequences in the same order, the same
// statistics, the same decision to step or skip, the same update. After step s the state is a function of the
// configuration, the tokens and s; so a resumed run goes on as if it had never stopped.
//
// A gate stands before every update: a step whose loss or gradients are not finite is skipped. On the CPU, rows that
// are read seldom move inside the backward pass where their gradient is complete there, behind a gate of their own: a
// row comes to the core once, for its selections' gradients and for its update. The bits are the same. But should
// something else turn out not to be finite afterwards, the step is skipped although those rows have moved; it says so.
//
// On a GPU the host runs ahead of the device. In a steady step it waits for it once in each leg of a lookup over
// several ranks (for the counts of what it sends: comm/route.h) and once for the gate, whose decision the update
// needs; nothing is allocated.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/buckets.h"
#include "comm/shared_rows.h"
#include "io/batches.h"
#include "launcher/model.h"
#include "optim/clipping.h"
#include "optim/loss_scaler.h"
#include "runtime/readback.h"

namespace pkmesh {

// What one step did, the same on every rank but for `seconds` and `communication`.
struct StepFigures {
  int64_t step = 0;
  double loss = 0;                    // mean over the step's tokens, nats; this and the norms: NaN if not finite
  double dense_norm = 0;              // of the gradients before clipping
  std::optional<double> values_norm;  // of the table rows' gradients before clipping, where they are clipped
  double learning_rate = 0;           // dense
  int64_t tokens = 0;                 // over all ranks
  double loss_scale = 1;              // of this step's backward pass
  bool skipped = false;               // a loss or a gradient was not finite: nothing moved, or why_skipped says what
  std::string why_skipped;
  double seconds = 0;
  Ledger communication;
};

class Trainer {
 public:
  // Collective. `config` is resolved and the same on all ranks.
  Trainer(const config::Config& config, Communicator& world, Device device, BatchSampler batches, int64_t vocabulary);

  // One update of all parameters. Collective.
  StepFigures step();
  int64_t steps_done() const { return step_; }

  // Everything that a resumed run needs beside the number of steps done: the model and the optimisers' state.
  CheckpointContents contents();
  void set_steps_done(int64_t steps) { step_ = steps; }

  // Waits for what other ranks computed in the last update.
  Model& model();
  Device device() { return model_.stream().device(); }

  // Scales losses as FP16 does, whatever the precision. Before the first step, and before a checkpoint is loaded.
  void scale_losses(const LossScaler::Options& options) { scaler_ = LossScaler(options); }
  bool scales_losses() const { return scaler_.on(); }
  // Whether steps that were not finite may end by themselves: the loss is scaled, and the scale can still fall.
  bool may_lower_scale() const { return scaler_.may_fall(); }

 private:
  bool rows_may_move_in_backward();
  bool move_rows(const ValueTable& table, const RowGradients& gradients, Vector<float> dweights);
  void add_row_squares(size_t table, const RowGradients& gradients, Vector<double> total);
  void update_rows(size_t table, const RowGradients& gradients, const Gate& gate, Vector<float> dweights = {});
  double update_scale(double squares, double clip_norm) const;
  void stage_batches();
  void forward_backward(int64_t micro);
  InputRows read_input_rows(StepContext& context, Vector<const int32_t> ids);
  GateShare gate_share();
  StepFigures describe(const Gate& gate) const;
  void update(const Gate& gate, double rate);
  BatchShape batch() const;
  // What Adam's bias correction and the rounding of rows go by. Without a loss scale skipped steps count too.
  int64_t updates() const { return step_ - scaler_.skipped(); }
  bool clips_values() const { return config_.values().clip_norm() > 0; }

  const config::Config config_;
  Model model_;
  Communicator& world_;  // the model's
  BatchSampler batches_;
  GradientBuckets buckets_;
  std::unique_ptr<SharedRows> input_rows_;    // null: inputs are read from, and add to, the table itself
  Pending input_gradients_;                   // of these rows
  std::vector<Share> squared_;                // parameters whose gradients' squares are this rank's part of the norm
  Adam adam_;                                 // of the parameters that this rank looks after
  std::vector<RowOptimizer> row_optimizers_;  // one per table
  std::vector<std::optional<double>> moved_;  // this step's tables whose rows have moved: their share of the gate
  Buffer<int32_t> staged_;                    // host memory: a step's inputs and targets, micro-step by micro-step
  Buffer<double> figures_;                    // on the device: what gate_share() reads, in the order of enum Figure
  Readback<double> read_figures_;
  LossScaler scaler_;
  Buffer<float> statistics_;  // the model's states as they were before the step: a skipped one restores them
  int64_t step_ = 0;          // steps done
};

}  // namespace pkmesh
