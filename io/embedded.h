// SPDX-License-Identifier: Apache-2.0
// Files that the build puts into the program (io/CMakeLists.txt names them), so that it runs from anywhere.
#pragma once

#include <span>
#include <string_view>

namespace pkmesh {

struct EmbeddedFile {
  std::string_view name;  // without folder: "debug.textproto"
  std::string_view bytes;
};

std::span<const EmbeddedFile> embedded_files();

// The text that data.source BUILT_IN stands for: the licence, 11 kB of English.
std::string_view built_in_text();

}  // namespace pkmesh
