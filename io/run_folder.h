// SPDX-License-Identifier: Apache-2.0
// The folder of a run: config.textproto, run.json (who, what, where, when), train.log, metrics.jsonl, tb/,
// checkpoints/, and trace/ of one with --profile. One run, one folder: another run's files are never written over. For
// rank 0, under agree().
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "io/file.h"

namespace pkmesh {

struct RunDescription {
  std::vector<std::string> command;  // argv
  Hosts hosts;
  std::string from = {};  // the checkpoint that it goes on from, or empty
};

class RunFolder {
 public:
  // Makes the folders of a new run in an empty or absent folder; with `resume`, a run that is there already goes on.
  // UserError, and nothing left behind, if the folder cannot be written, belongs to something else, is being written to
  // by another process, or holds a run that `resume` does not ask for.
  RunFolder(std::string path, bool resume);
  // A new run that never began leaves nothing behind: no folder, or an empty one where it found one.
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  // All has been checked: writes config.textproto and run.json. Of a run that goes on, run.json gets one more entry
  // under "resumed".
  void begin(const std::string& config_text, const RunDescription& description);

  const std::string& path() const { return path_; }
  // A file, there until begin(), whose text no other folder has, not even a copy of this one.
  std::string mark() const { return path_ + "/.begins"; }
  std::string config() const { return path_ + "/config.textproto"; }
  std::string description() const { return path_ + "/run.json"; }
  std::string log() const { return path_ + "/train.log"; }
  std::string metrics() const { return path_ + "/metrics.jsonl"; }
  std::string tensorboard() const { return path_ + "/tb"; }
  std::string checkpoints() const { return path_ + "/checkpoints"; }
  bool resumed() const { return resumed_; }

 private:
  void open(bool resume);
  void undo();
  void remove_contents();
  std::string unfinished() const { return path_ + "/.unfinished"; }  // there until run.json is

  std::string path_;
  std::optional<FolderLock> lock_;
  std::vector<std::string> made_;  // folders that were not there before, the innermost first
  bool resumed_ = false;
  bool owns_contents_ = false;  // the folder was empty when it was locked
  bool begun_ = false;
};

// The checkpoint of another run that the one in this folder began with; empty if it began from the beginning. UserError
// if the folder's run.json does not describe a run.
std::string run_origin(const std::string& path);

std::string program_version();  // "0.1.0"
std::string program_commit();   // of the working tree it was built from, "" if that was none: ten digits, "-dirty"

}  // namespace pkmesh
