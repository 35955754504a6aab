// SPDX-License-Identifier: Apache-2.0
// The one seam between an op and its devices; nothing above it knows what was compiled in.
//
// PKM_OP(gelu_forward, Matrix<const float> x, Matrix<float> y) declares gelu_forward(Stream&, x, y), which callers call
// and gelu.cpp defines: it checks shapes and dispatches. PKM_KERNEL, which is a part of it, declares what it dispatches
// to: cpu::gelu_forward, cpu_avx512::gelu_forward and cuda::gelu_forward. All have one signature, so they cannot drift.
// PKM_KERNEL stands alone where a class dispatches, or where callers pass something other than what kernels take. The
// last two kernels are weak symbols: null unless they were linked, and dispatch() then takes the baseline, or says by
// name that there is no such kernel, instead of doing nothing. (Weak symbols are not pulled out of archives, hence the
// CMake object libraries.) A third device is a third line in PKM_KERNEL and a third case in dispatch().
//
// gelu_cpu.cpp, and headers of kernels for such files, stand in namespace PKM_CPU: cpu or cpu_avx512, whichever level
// they are being compiled for (runtime/cpu.h).
#pragma once

#include <type_traits>
#include <utility>

#include "runtime/between_ops.h"
#include "runtime/check.h"
#include "runtime/cpu.h"
#include "runtime/device.h"

#define PKM_KERNEL(name, ...)                              \
  namespace cpu {                                          \
  void name(::pkmesh::Stream&, __VA_ARGS__);               \
  }                                                        \
  namespace cpu_avx512 {                                   \
  [[gnu::weak]] void name(::pkmesh::Stream&, __VA_ARGS__); \
  }                                                        \
  namespace cuda {                                         \
  [[gnu::weak]] void name(::pkmesh::Stream&, __VA_ARGS__); \
  }

#define PKM_OP(name, ...)                    \
  void name(::pkmesh::Stream&, __VA_ARGS__); \
  PKM_KERNEL(name, __VA_ARGS__)

// Runs the op on the stream's device: PKM_DISPATCH(stream, gelu_forward, x, y).
#define PKM_DISPATCH(stream, name, ...) \
  ::pkmesh::dispatch(#name, cpu::name, cpu_avx512::name, cuda::name, stream, __VA_ARGS__)

namespace pkmesh {

template <class... Parameters, class... Arguments>
void dispatch(const char* name, void (*on_cpu)(Stream&, Parameters...), void (*on_avx512)(Stream&, Parameters...),
              void (*on_cuda)(Stream&, Parameters...), Stream& stream, Arguments&&... arguments) {
  switch (stream.device().kind) {
    case DeviceKind::kCpu:
      if (on_avx512 != nullptr && cpu_level() != CpuLevel::kAvx2)
        on_avx512(stream, std::forward<Arguments>(arguments)...);
      else
        on_cpu(stream, std::forward<Arguments>(arguments)...);
      return end_op();
    case DeviceKind::kCuda:
      if (on_cuda == nullptr)
        user_error("{} has no CUDA kernel in this program; set train.device: CPU, or build the cuda preset", name);
      return on_cuda(stream, std::forward<Arguments>(arguments)...);
  }
}

}  // namespace pkmesh
