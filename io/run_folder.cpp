// SPDX-License-Identifier: Apache-2.0
#include "io/run_folder.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

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
  if (!json.is_object()) user_error("{}: not JSON; restore the file, or give another --out", path);
  return json;
}

}  // namespace

std::string program_version() {
  return PKMESH_VERSION;
}
std::string program_commit() {
  return PKMESH_COMMIT;
}

void RunFolder::write(const std::string& config_text, const RunDescription& description) {
  for (const std::string& folder : {tensorboard(), trace(), checkpoints()}) make_folder(folder);
  ordered_json json = to_json(description);
  if (resumed_) {
    ordered_json first = read_description(this->description());
    first["resumed"].push_back(std::move(json));
    json = std::move(first);
  }
  replace_text(config(), config_text);
  replace_text(this->description(), json.dump(2) + "\n");
}

RunFolder RunFolder::open(const std::string& path, const std::string& config_text, const RunDescription& description,
                          bool resume) {
  RunFolder folder(path);
  std::error_code error;
  const bool existed = fs::exists(path, error);
  const bool empty = !existed || (fs::is_directory(path, error) && fs::is_empty(path, error));
  const bool is_run = fs::exists(folder.description(), error);
  if (!empty && is_run && !resume)
    user_error("{}: holds a run already; add --resume auto to go on with it, or give another --out", path);
  if (!empty && !is_run) user_error("{}: exists and is no run; give another --out", path);
  folder.resumed_ = is_run;
  try {
    folder.write(config_text, description);
  } catch (const UserError&) {
    if (!is_run)  // what was not there before goes again
      for (const std::string& made : {folder.tensorboard(), folder.trace(), folder.checkpoints(), folder.config(),
                                      existed ? folder.config() : path})
        remove_quietly(made);
    throw;
  }
  return folder;
}

}  // namespace pkmesh
