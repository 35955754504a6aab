// SPDX-License-Identifier: Apache-2.0
#include "runtime/cuda_blas.h"
#include "runtime/cuda_stream.h"

namespace pkmesh::cuda {

cublasHandle_t blas(Stream& stream) {
  StreamState& own = state(stream);
  if (own.blas == nullptr) {
    make_current(stream.device().index);  // a handle belongs to the device that is current now
    cublasHandle_t handle = nullptr;
    PKM_CUBLAS(cublasCreate(&handle));
    own.blas = {handle, [](void* owned) { cublasDestroy(static_cast<cublasHandle_t>(owned)); }};
    own.blas_workspace = allocate(stream.device(), kBlasWorkspaceBytes);
    PKM_CUBLAS(cublasSetStream(handle, native(stream)));  // before the workspace, which it would take away
    PKM_CUBLAS(cublasSetWorkspace(handle, own.blas_workspace.get(), kBlasWorkspaceBytes));
    PKM_CUBLAS(cublasSetMathMode(handle, CUBLAS_DEFAULT_MATH));
    PKM_CUBLAS(cublasSetAtomicsMode(handle, CUBLAS_ATOMICS_NOT_ALLOWED));
  }
  return static_cast<cublasHandle_t>(own.blas.get());
}

}  // namespace pkmesh::cuda
