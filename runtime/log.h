// SPDX-License-Identifier: Apache-2.0
// Lines for people. Rank 0 speaks on standard error and in train.log; the other ranks stay silent below `warning`.
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>

namespace pkmesh {

// Called once per process after the rank is known. A rank > 0 prints warnings only, with its number in front.
void start_log(int rank);
// Also appends every line to this file (train.log). Throws UserError if it cannot be written.
void log_to_file(const std::string& path);
// What the user asked to see, on standard output, which nothing else is written to. UserError if it cannot be written:
// a full disk; a reader that has gone ends the program, as it does others.
void print_out(std::string_view text);
void flush_out();
bool stderr_is_terminal();  // colour and progress bars only then

void log_info(std::string_view line);
void log_warning(std::string_view line);
// As it is, whichever rank says so; also at the end of the file named before, for why a run ended is to be read there.
void log_error(std::string_view line);
void log_errors_to_file(const std::string& path);

template <class... Args>
requires(sizeof...(Args) > 0) void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_info(std::string_view(fmt::format(format, std::forward<Args>(args)...)));
}
template <class... Args>
requires(sizeof...(Args) > 0) void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_warning(std::string_view(fmt::format(format, std::forward<Args>(args)...)));
}

}  // namespace pkmesh
