// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace pkmesh {

// Says to the core that this thread looks at memory again and again until another changes it.
inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

}  // namespace pkmesh
