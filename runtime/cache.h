// SPDX-License-Identifier: Apache-2.0
// What kernels of the CPU cut their work by. Results must not depend on it: the next machine's differs.
#pragma once

#include <cstdint>

namespace pkmesh {

// Bytes of a core's second-level cache; 1 MiB where the system does not say.
int64_t second_level_cache();

}  // namespace pkmesh
