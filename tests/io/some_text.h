// SPDX-License-Identifier: Apache-2.0
// Text for the tests of what reads it.
#pragma once

#include <zlib.h>

#include <string>
#include <vector>

#include "runtime/random.h"

namespace pkmesh {

// Numbered lines, so that a line says where it stood.
inline std::string some_text(int64_t lines) {
  const Random random(9, "tokenize test");
  const std::vector<std::string> words = {"memory", "dictionary", "product", "key", "the", "of", "\xE2\x82\xAC"};
  std::string text;
  for (int64_t line = 0; line < lines; ++line) {
    text += std::to_string(line);
    for (uint64_t i = 0; i < 8; ++i)
      text += " " + words[random.bits(static_cast<uint64_t>(line) * 8 + i) % words.size()];
    text += line % 10 == 9 ? "\n\n" : "\n";
  }
  return text;
}

inline void write_gzip(const std::string& path, const std::string& text) {
  const gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  gzclose(file);
}

}  // namespace pkmesh
