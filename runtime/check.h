// SPDX-License-Identifier: Apache-2.0
// Two families of errors, never mixed:
//   UserError      the caller's mistake: one line that says what, where and how to mend it; the program exits with 2.
//   InternalError  our bug (or the machine's): expression, place and context; the program aborts the whole job with 1.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pkmesh {

class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class InternalError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws UserError with a formatted, one-line message: user_error("{}: no such file; pass --data DIR", path).
template <class... Args>
[[noreturn]] void user_error(fmt::format_string<Args...> format, Args&&... args) {
  throw UserError(fmt::format(format, std::forward<Args>(args)...));
}

namespace detail {
[[noreturn]] void fail_check(const char* expression, const char* file, int line, const std::string& message);
}  // namespace detail

// A named extent, so that a shape error can say which dimension is wrong: {"tokens", T}.
struct Extent {
  const char* name;
  int64_t size;
};

// Throws InternalError unless `shape` equals `expected`: "gelu: x is (3, 5), expected (tokens=3, width=4)".
void check_shape(std::string_view what, std::span<const int64_t> shape, std::initializer_list<Extent> expected);

}  // namespace pkmesh

// PKM_CHECK(condition, "format", args...): an invariant of ours; InternalError with expression, place and message.
#define PKM_CHECK(condition, ...)                                                               \
  do {                                                                                          \
    if (!(condition)) [[unlikely]]                                                              \
      ::pkmesh::detail::fail_check(#condition, __FILE__, __LINE__, ::fmt::format(__VA_ARGS__)); \
  } while (false)
