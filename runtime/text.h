// SPDX-License-Identifier: Apache-2.0
// Words of lines for people.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pkmesh {

// "1 rank", "3 ranks"
std::string counted(int64_t count, std::string_view what);

// Takes the first line off a text.
std::string_view take_line(std::string_view& text);

// Three digits or so, in the unit that suits: "412 ms", "1.53 s"; "254k", "1.25M"; "312 MiB"; "1h52m".
std::string duration_text(double milliseconds);
std::string count_text(double count);
std::string bytes_text(double bytes);
std::string time_left_text(double seconds);

// The value but for a nan's sign, which says nothing and would be printed: "-nan".
double unsigned_nan(double value);

}  // namespace pkmesh
