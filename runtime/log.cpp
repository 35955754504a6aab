// SPDX-License-Identifier: Apache-2.0
#include "runtime/log.h"

#include <fmt/chrono.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>

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

std::string g_errors;  // the file; set once. The watchdog's thread reads it in a hang, when the setter stands still

}  // namespace

void log_info(std::string_view line) {
  spdlog::info("{}", line);
}
void log_warning(std::string_view line) {
  spdlog::warn("warning: {}", line);
}
void log_error(std::string_view line) {
  std::fputs(fmt::format("{}\n", line).c_str(), stderr);  // nobody may be there to read it
  if (g_errors.empty()) return;
  std::ofstream(g_errors, std::ios::app) << fmt::format("{:%Y-%m-%d %H:%M:%S} {}\n", fmt::localtime(std::time(nullptr)),
                                                        line);
}
void log_errors_to_file(const std::string& path) {
  g_errors = path;
}

}  // namespace pkmesh
