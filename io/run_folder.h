// SPDX-License-Identifier: Apache-2.0
// The folder of a run: config.textproto, run.json (who, what, where, when), train.log, metrics.jsonl, tb/, trace/,
// checkpoints/. One run, one folder: another run's files are never written over. For rank 0, under agree().
#pragma once

#include <string>
#include <vector>

#include "comm/communicator.h"

namespace pkmesh {

struct RunDescription {
  std::vector<std::string> command;  // argv
  Hosts hosts;
};

class RunFolder {
 public:
  // A new run in an empty or absent folder. With `resume`, a run that is there already goes on: run.json gets one more
  // entry under "resumed", and config.textproto becomes `config_text`. UserError, and nothing half-written, if the
  // folder cannot be written, belongs to something else, or holds a run that `resume` does not ask for.
  static RunFolder open(const std::string& path, const std::string& config_text, const RunDescription& description,
                        bool resume);

  const std::string& path() const { return path_; }
  std::string config() const { return path_ + "/config.textproto"; }
  std::string description() const { return path_ + "/run.json"; }
  std::string log() const { return path_ + "/train.log"; }
  std::string metrics() const { return path_ + "/metrics.jsonl"; }
  std::string tensorboard() const { return path_ + "/tb"; }
  std::string trace() const { return path_ + "/trace"; }
  std::string checkpoints() const { return path_ + "/checkpoints"; }
  bool resumed() const { return resumed_; }

 private:
  explicit RunFolder(std::string path) : path_(std::move(path)) {}
  void write(const std::string& config_text, const RunDescription& description);

  std::string path_;
  bool resumed_ = false;
};

std::string program_version();  // "0.1.0"
std::string program_commit();   // of the working tree it was built from, "" if that was none

}  // namespace pkmesh
