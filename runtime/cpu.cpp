// SPDX-License-Identifier: Apache-2.0
#include "runtime/cpu.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <string_view>

#include "runtime/check.h"

namespace pkmesh {
namespace {

#ifdef __x86_64__
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Tiles are a large piece of a thread's state, so Linux (5.16) wants to be asked for them. What it grants holds for the
// process, threads that run already included.
bool may_use_tiles() {
  constexpr unsigned kBf16 = 1U << 22;
  constexpr unsigned kTiles = 1U << 24;
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kBf16) == 0 || (edx & kTiles) == 0) return false;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILE_DATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

CpuLevel best_level(bool want_tiles) {
  if (!has_avx512()) return CpuLevel::kAvx2;
  return want_tiles && may_use_tiles() ? CpuLevel::kAmx : CpuLevel::kAvx512;
}
#else
CpuLevel best_level(bool) {
  return CpuLevel::kAvx2;
}
#endif

}  // namespace

std::string_view to_string(CpuLevel level) {
  switch (level) {
    case CpuLevel::kAvx2:
      return "avx2";
    case CpuLevel::kAvx512:
      return "avx512";
    case CpuLevel::kAmx:
      return "amx";
  }
  return {};
}

CpuLevel choose_cpu_level(const char* asked, CpuLevel best) {
  const std::string_view name = asked == nullptr ? "" : asked;
  if (name.empty()) return best;
  for (const CpuLevel level : {CpuLevel::kAvx2, CpuLevel::kAvx512, CpuLevel::kAmx}) {
    if (name != to_string(level)) continue;
    if (level > best) user_error("PKMESH_CPU={}: this machine can do {} at best; leave it out", name, to_string(best));
    return level;
  }
  user_error("PKMESH_CPU={}: it takes avx2, avx512 or amx", name);
}

CpuLevel cpu_level() {
  static const CpuLevel level = [] {
    const char* const asked = std::getenv("PKMESH_CPU");
    const std::string_view name = asked == nullptr ? "" : asked;
    return choose_cpu_level(asked, best_level(name.empty() || name == to_string(CpuLevel::kAmx)));
  }();
  return level;
}

}  // namespace pkmesh
