// SPDX-License-Identifier: Apache-2.0
// The one seam between an op and its devices; nothing above it knows what was compiled in.
//
// PKM_OP(gelu_forward, Vector<const float> x, Vector<float> y) declares cpu::gelu_forward and cuda::gelu_forward with
// one signature, so the two cannot drift. The CUDA one is a weak symbol: it is null unless a _cuda.cu file was linked,
// and then dispatch() says so by name instead of doing nothing. (Weak symbols are not pulled out of archives, hence the
// CMake object library.) A third device is a third line in PKM_OP and a third case in dispatch().
#pragma once

#include <type_traits>
#include <utility>

#include "runtime/check.h"
#include "runtime/device.h"

#define PKM_OP(name, ...)                                  \
  namespace cpu {                                          \
  void name(::pkmesh::Stream&, __VA_ARGS__);               \
  }                                                        \
  namespace cuda {                                         \
  [[gnu::weak]] void name(::pkmesh::Stream&, __VA_ARGS__); \
  }

// Runs the op on the stream's device: PKM_DISPATCH(stream, gelu_forward, x, y).
#define PKM_DISPATCH(stream, name, ...) ::pkmesh::dispatch(#name, cpu::name, cuda::name, stream, __VA_ARGS__)

namespace pkmesh {

template <class... Parameters, class... Arguments>
void dispatch(const char* name, void (*on_cpu)(Stream&, Parameters...), void (*on_cuda)(Stream&, Parameters...),
              Stream& stream, Arguments&&... arguments) {
  switch (stream.device().kind) {
    case DeviceKind::kCpu:
      return on_cpu(stream, std::forward<Arguments>(arguments)...);
    case DeviceKind::kCuda:
      if (on_cuda == nullptr)
        user_error("{} has no CUDA kernel in this program; set device: CPU, or build the cuda preset", name);
      return on_cuda(stream, std::forward<Arguments>(arguments)...);
  }
}

}  // namespace pkmesh
