// SPDX-License-Identifier: Apache-2.0
#include "runtime/process_memory.h"

#include <fmt/core.h>
#include <sys/resource.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

#include "runtime/text.h"

namespace pkmesh {
namespace {

std::string slurp(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// A file with one number, which may be the word "max".
std::optional<int64_t> read_limit(const std::string& path) {
  const std::string text = slurp(path);
  int64_t bytes = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), bytes);
  return error == std::errc() ? std::optional(bytes) : std::nullopt;
}

}  // namespace

// Lines are "number:controllers:path"; version 2 is "0::path". A container may see its own group as the root, whatever
// the path says, so that what is not there is passed over.
std::optional<int64_t> cgroup_limit(std::string_view groups, const std::string& root) {
  std::optional<int64_t> least;
  while (!groups.empty()) {
    std::string_view line = take_line(groups);
    line.remove_prefix(std::min(line.size(), line.find(':') + 1));
    const size_t colon = std::min(line.size(), line.find(':'));
    const std::string controllers = fmt::format(",{},", line.substr(0, colon));
    const bool second = colon == 0;
    if (!second && controllers.find(",memory,") == std::string::npos) continue;
    const std::string mount = root + (second ? "" : "/memory");
    const char* const file = second ? "/memory.max" : "/memory.limit_in_bytes";
    std::string path(line.substr(std::min(line.size(), colon + 1)));
    while (true) {
      const std::optional<int64_t> limit = read_limit(mount + path + file);
      if (limit) least = std::min(least.value_or(*limit), *limit);
      if (path.empty()) break;
      const size_t slash = path.rfind('/');
      path.resize(slash == std::string::npos ? 0 : slash);
    }
  }
  return least;
}

int64_t proc_bytes(std::string_view text, std::string_view key) {
  const std::string wanted = fmt::format("{}:", key);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (!line.starts_with(wanted)) continue;
    line.remove_prefix(wanted.size());
    while (!line.empty() && std::isspace(static_cast<unsigned char>(line.front())) != 0) line.remove_prefix(1);
    int64_t kibibytes = 0;
    std::from_chars(line.data(), line.data() + line.size(), kibibytes);
    return kibibytes * 1024;
  }
  return 0;
}

ProcessMemory process_memory() {
  const std::string status = slurp("/proc/self/status");
  const std::string machine = slurp("/proc/meminfo");
  ProcessMemory memory = {proc_bytes(status, "VmRSS"), proc_bytes(status, "VmHWM"), proc_bytes(machine, "MemTotal"),
                          proc_bytes(machine, "MemAvailable")};
  const std::optional<int64_t> limit = cgroup_limit(slurp("/proc/self/cgroup"));
  if (limit) memory.machine_total = std::min(memory.machine_total, *limit);
  rlimit space{};
  const bool limited = ::getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY;
  memory.address_space_left = limited ? static_cast<int64_t>(space.rlim_cur) - proc_bytes(status, "VmSize")
                                      : std::numeric_limits<int64_t>::max();
  memory.machine_available = std::min(memory.machine_available, memory.machine_total - memory.resident);
  return memory;
}

}  // namespace pkmesh
