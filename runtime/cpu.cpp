// SPDX-License-Identifier: Apache-2.0
#include "runtime/cpu.h"

#include <cstdlib>
#include <string_view>

#include "runtime/check.h"

namespace pkmesh {
namespace {

bool has_avx512() {
#ifdef __x86_64__
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

}  // namespace

std::string_view to_string(CpuLevel level) {
  return level == CpuLevel::kAvx512 ? "avx512" : "avx2";
}

CpuLevel choose_cpu_level(const char* asked, bool has_avx512) {
  const std::string_view name = asked == nullptr ? "" : asked;
  if (name.empty()) return has_avx512 ? CpuLevel::kAvx512 : CpuLevel::kAvx2;
  if (name == to_string(CpuLevel::kAvx2)) return CpuLevel::kAvx2;
  if (name != to_string(CpuLevel::kAvx512)) user_error("PKMESH_CPU={}: it takes avx2 or avx512", name);
  if (!has_avx512) user_error("PKMESH_CPU=avx512: this CPU has no AVX-512; leave it out, or set it to avx2");
  return CpuLevel::kAvx512;
}

CpuLevel cpu_level() {
  static const CpuLevel level = choose_cpu_level(std::getenv("PKMESH_CPU"), has_avx512());
  return level;
}

}  // namespace pkmesh
