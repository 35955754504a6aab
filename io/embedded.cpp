// SPDX-License-Identifier: Apache-2.0
#include "io/embedded.h"

#include "runtime/check.h"

namespace pkmesh {

std::string_view built_in_text() {
  for (const EmbeddedFile& file : embedded_files()) {
    if (file.name == "LICENSE") return file.bytes;
  }
  PKM_CHECK(false, "the program was built without its text");
  return {};
}

}  // namespace pkmesh
