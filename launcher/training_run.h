// SPDX-License-Identifier: Apache-2.0
// A training run as its user sees it: a folder that fills, lines on the terminal, checkpoints. The Trainer computes,
// the TrainingRun tells. All methods are collective; only rank 0 writes and speaks.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "io/metrics.h"
#include "io/run_folder.h"
#include "io/tensorboard.h"
#include "io/trace.h"
#include "launcher/commands.h"
#include "launcher/evaluator.h"
#include "launcher/trainer.h"

namespace pkmesh {

class TrainingRun {
 public:
  // Opens the tokens, checks them, makes or reopens the run folder, builds the trainer, loads the checkpoint to resume
  // from. If any of that fails, nothing is left behind and a former run is as it was.
  TrainingRun(Communicator& world, const config::Config& config, const TrainArguments& options);
  ~TrainingRun();
  TrainingRun(const TrainingRun&) = delete;
  TrainingRun& operator=(const TrainingRun&) = delete;

  const config::Config& config() const { return config_; }
  int64_t steps_done() const { return trainer_->steps_done(); }

  void describe();       // what will run: hosts, model, data, memory; before the first step
  void step();           // one step, and its line. UserError if the run has diverged
  void report_memory();  // how the memories were used since the last report
  bool validate(
      const std::function<bool()>& stop);  // perplexity on the validation tokens, if there are any; false: stopped
  void end_step();                         // writes what was measured since step() to metrics.jsonl and for TensorBoard
  void save(bool at_the_end);  // a checkpoint, unless the run may have diverged; at its end that is a UserError
  void finish();               // totals; with --profile what communication cost, and the trace

 private:
  void open_tokens(const std::string& folder);
  std::string describe_data() const;  // the same where the same is read
  void make_folder(const std::string& checkpoint);
  void begin_folder(const std::string& checkpoint);
  CheckpointFacts resume(const std::string& checkpoint);
  void report_changes(const CheckpointFacts& facts) const;
  std::string computes_on() const;
  void report_step(const StepFigures& figures);
  void report_profile();

  Communicator& world_;
  config::Config config_;
  TrainArguments options_;
  std::string tokens_folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<Tokens> train_tokens_;
  std::optional<Tokens> valid_tokens_;
  std::unique_ptr<Trainer> trainer_;
  std::optional<RunFolder> folder_;  // rank 0, as the next two
  std::optional<MetricsFile> metrics_;
  std::optional<TensorBoardWriter> tensorboard_;
  nlohmann::json line_;         // of metrics.jsonl: this step's so far
  std::optional<Trace> trace_;  // with --profile

  int64_t skipped_ = 0;          // steps, because something was not finite
  int64_t skipped_in_turn_ = 0;  // of them, the last ones
  bool valid_ = true;            // the last validation loss was finite, or there was none

  struct Window {  // of steps: since the last step line, the last memory line, the start
    int64_t steps = 0;
    double seconds = 0;
    int64_t tokens = 0;
    Ledger communication;
  };
  Window since_line_;
  Window since_memory_;
  Window since_start_;
};

}  // namespace pkmesh
