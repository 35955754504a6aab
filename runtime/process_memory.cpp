// SPDX-License-Identifier: Apache-2.0
#include "runtime/process_memory.h"

#include <fmt/core.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <fstream>
#include <sstream>
#include <string>

namespace pkmesh {
namespace {

std::string slurp(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

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
  return {proc_bytes(status, "VmRSS"), proc_bytes(status, "VmHWM"), proc_bytes(machine, "MemTotal"),
          proc_bytes(machine, "MemAvailable")};
}

}  // namespace pkmesh
