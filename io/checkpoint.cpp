// SPDX-License-Identifier: Apache-2.0
// Folders of checkpoints: which are whole, which is the latest, which go.
#include "io/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "io/checkpoint_manifest.h"

namespace pkmesh {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step_";

bool whole(const std::string& path) {
  try {
    read_manifest(path);
    return true;
  } catch (const UserError&) {
    return false;
  }
}

// Folders with a checkpoint's name, whole or not, oldest first.
std::vector<std::string> list_named(const std::string& folder) {
  std::vector<std::pair<int64_t, std::string>> found;
  for (const std::string& name : list_folder(folder))
    if (const auto step = step_of(name)) found.emplace_back(*step, fmt::format("{}/{}", folder, name));
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

}  // namespace

void DenseTensor::check() const {
  for (const Part& part : parts)
    PKM_CHECK(0 <= part.begin && part.begin + std::ssize(part.bytes) <= info.bytes(), "{}: bytes [{}, {}) of {}",
              info.name, part.begin, part.begin + std::ssize(part.bytes), info.bytes());
  PKM_CHECK(cut || (parts.size() == 1 && std::ssize(parts[0].bytes) == info.bytes()),
            "{}: {} parts are not its {} bytes", info.name, parts.size(), info.bytes());
}

std::string checkpoint_name(int64_t step) {
  return fmt::format("{}{:08}", kPrefix, step);
}

std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc() || stop != end || name != checkpoint_name(step)) return std::nullopt;
  return step;
}

std::vector<std::string> list_checkpoints(const std::string& folder) {
  std::vector<std::string> paths = list_named(folder);
  std::erase_if(paths, [](const std::string& path) { return !whole(path); });
  return paths;
}

std::optional<std::string> newest_folder(const std::string& folder) {
  const auto all = list_named(folder);
  return all.empty() ? std::nullopt : std::optional(all.back());
}

std::optional<std::string> latest_checkpoint(const std::string& folder) {
  auto newest = newest_folder(folder);
  if (newest) read_manifest(*newest);
  return newest;
}

std::string find_checkpoint(const std::string& given) {
  std::string path = given;
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  std::error_code error;
  const bool named = step_of(fs::path(path).filename().string()).has_value() && fs::is_directory(path, error);
  if (named || fs::exists(path + "/" + kManifestFile, error)) {
    read_manifest(path);
    return path;
  }
  if (!fs::exists(path, error) && !error)
    user_error("{}: is not there{}; give a step_... folder, or a run that has one", path,
               step_of(fs::path(path).filename().string()) ? " (a run keeps its last train.keep_checkpoints)" : "");
  for (const std::string& folder : {path, path + "/checkpoints"})
    if (const auto latest = latest_checkpoint(folder)) return *latest;
  user_error("{}: no whole checkpoint there; give a step_... folder, or a run that has one", path);
}

void prune_checkpoints(const std::string& folder, int64_t keep) {
  const auto all = list_checkpoints(folder);
  if (keep < 1 || std::ssize(all) <= keep) return;
  for (auto path = all.begin(); path != all.end() - keep; ++path) {
    // Renamed first, so that the name never stands for less than a whole checkpoint.
    const std::string doomed = fmt::format("{}/.{}.tmp", folder, fs::path(*path).filename().string());
    std::error_code error;
    fs::rename(*path, doomed, error);
    if (!error) remove_quietly(doomed);
  }
}

}  // namespace pkmesh
