// SPDX-License-Identifier: Apache-2.0
#include "io/run_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "io/file.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text.data();
}

ordered_json to_json(const RunDescription& description) {
  ordered_json json = {{"version", program_version()},
                       {"commit", program_commit()},
                       {"started", now_utc()},
                       {"command", description.command},
                       {"ranks", description.hosts.of_rank.size()}};
  if (!description.from.empty()) json["from"] = description.from;
  json["hosts"] = ordered_json::array();
  for (size_t host = 0; host < description.hosts.names.size(); ++host) {
    const auto& of_rank = description.hosts.of_rank;
    json["hosts"].push_back({{"name", description.hosts.names[host]},
                             {"ranks", std::count(of_rank.begin(), of_rank.end(), static_cast<int>(host))}});
  }
  return json;
}

ordered_json read_description(const std::string& path) {
  ordered_json json = ordered_json::parse(read_text(path), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("command") || (json.contains("resumed") && !json["resumed"].is_array()))
    user_error("{}: does not describe a run; restore the file, or give another --out", path);
  return json;
}

}  // namespace

std::string run_origin(const std::string& path) {
  const std::string description = path + "/run.json";
  std::error_code error;
  if (!fs::exists(description, error)) return "";
  const ordered_json json = read_description(description);
  return json.contains("from") && json["from"].is_string() ? json["from"].get<std::string>() : "";
}

std::string program_version() {
  return PKMESH_VERSION;
}
std::string program_commit() {
  return PKMESH_COMMIT;
}

RunFolder::RunFolder(std::string path, bool resume) : path_(std::move(path)) {
  std::error_code error;
  if (fs::exists(path_, error) && !fs::is_directory(path_, error))
    user_error("{}: exists and is no run; give another --out", path_);
  made_ = make_folder(path_);
  try {
    lock_.emplace(path_);
    open(resume);
  } catch (const UserError&) {
    undo();
    throw;
  }
}

// What is there is looked at under the lock: it was there before.
void RunFolder::open(bool resume) {
  std::error_code error;
  resumed_ = fs::exists(description(), error);
  if (resumed_ && !resume)
    user_error("{}: holds a run already; add --resume auto to go on with it, or give another --out", path_);
  // What a run that ended before it began has left is ours to remove.
  const bool marked = fs::exists(unfinished(), error);
  if (!resumed_ && marked) remove_contents();
  if (!resumed_ && !list_folder(path_).empty()) user_error("{}: exists and is no run; give another --out", path_);
  if (resumed_) read_description(description());
  owns_contents_ = !resumed_;
  if (!resumed_) File::create(unfinished());
  File::create(mark()).append(fmt::format("{} {}\n", now_utc(), std::random_device()()));
  for (const std::string& folder : {tensorboard(), checkpoints()}) {
    make_folder(folder);
    const std::string probe = folder + "/.writable";  // or the first checkpoint would be lost, and the steps before it
    File::create(probe);
    remove_quietly(probe);
  }
}

RunFolder::~RunFolder() {
  if (!begun_) undo();
}

void RunFolder::undo() try {
  if (lock_) remove_quietly(mark());
  if (owns_contents_) remove_contents();
  remove_empty_folders(made_);
} catch (const UserError&) {  // it cannot be read any more
}

// Nothing but what a run makes before it begins: a mark in the folder does not make ours what a user puts beside it,
// and tokens are ours beside the text that we made them of. The mark goes when all has gone, so that what could not be
// removed stays ours.
void RunFolder::remove_contents() {
  constexpr std::array kOurs = {".begins",       "built-in.txt", "checkpoints", "config.textproto",
                                "metrics.jsonl", "run.json",     "tb",          "tokens",
                                "trace",         "train.log"};
  std::error_code error;
  const bool built_in = fs::exists(path_ + "/built-in.txt", error);
  auto names = list_folder(path_);
  std::ranges::reverse(names);  // tokens before what makes them ours
  for (const std::string& name : names)
    if (std::ranges::any_of(kOurs, [&](std::string_view ours) {
          if (ours == "tokens" && !built_in) return false;
          return name == ours || name == fmt::format("{}.tmp", ours) || name == fmt::format("{}.partial", ours);
        }))
      remove_quietly(path_ + "/" + name);
  if (list_folder(path_).size() <= 1) remove_quietly(unfinished());
}

void RunFolder::begin(const std::string& config_text, const RunDescription& description) {
  ordered_json json = to_json(description);
  if (resumed_) {
    ordered_json first = read_description(this->description());
    first["resumed"].push_back(std::move(json));
    json = std::move(first);
  }
  replace_text(config(), config_text);
  // An argument may be any bytes, JSON may not.
  replace_text(this->description(), json.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");
  remove_quietly(unfinished());
  remove_quietly(mark());
  begun_ = true;
}

}  // namespace pkmesh
