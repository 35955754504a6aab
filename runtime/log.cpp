// SPDX-License-Identifier: Apache-2.0
#include "runtime/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "runtime/check.h"

namespace pkmesh {

void start_log(int rank) {
  auto logger = std::make_shared<spdlog::logger>("pkmesh", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_pattern(rank == 0 ? "%v" : fmt::format("[rank {}] %v", rank));
  logger->set_level(rank == 0 ? spdlog::level::info : spdlog::level::warn);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(logger);
}

void log_to_file(const std::string& path) {
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path, /*truncate=*/false);
    sink->set_pattern("%Y-%m-%d %H:%M:%S %v");
    spdlog::default_logger()->sinks().push_back(sink);
  } catch (const spdlog::spdlog_ex&) {
    user_error("{}: cannot be written; choose another --out", path);
  }
}

namespace {

[[noreturn]] void fail_to_print() {
  user_error("standard output cannot be written: {}; free some space or send it elsewhere", std::strerror(errno));
}

}  // namespace

void print_out(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) fail_to_print();
}

void flush_out() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) fail_to_print();
}

bool stderr_is_terminal() {
  return isatty(STDERR_FILENO) != 0;
}

namespace {

std::atomic<bool> g_in_file = false;  // whether the file has a line of this run

void say(spdlog::level::level_enum level, const char* prefix, std::string_view line) {
  spdlog::log(level, "{}{}", prefix, line);
  if (spdlog::default_logger()->sinks().size() > 1) g_in_file = true;
}

}  // namespace

void log_info(std::string_view line) {
  say(spdlog::level::info, "", line);
}
void log_warning(std::string_view line) {
  say(spdlog::level::warn, "warning: ", line);
}
void log_error(std::string_view line) {
  fmt::print(stderr, "{}\n", line);
  if (!g_in_file) return;
  const auto& sinks = spdlog::default_logger()->sinks();  // the first is standard error
  for (size_t i = 1; i < sinks.size(); ++i) try {
      sinks[i]->log(spdlog::details::log_msg("", spdlog::level::err, {line.data(), line.size()}));
      sinks[i]->flush();
    } catch (const spdlog::spdlog_ex&) {  // a full disk, perhaps the very error
    }
}

}  // namespace pkmesh
