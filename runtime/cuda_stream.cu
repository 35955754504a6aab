// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "runtime/cuda_stream.h"

namespace pkmesh::cuda {

StreamState& state(Stream& stream) {
  std::shared_ptr<void>& kept = stream.attachment();
  if (kept == nullptr) kept = std::make_shared<StreamState>();
  return *static_cast<StreamState*>(kept.get());
}

std::byte* scratch_bytes(Stream& stream, int64_t bytes) {
  StreamState& own = state(stream);
  if (own.scratch == nullptr || own.scratch_bytes < bytes) {
    PKM_CUDA(cudaStreamSynchronize(native(stream)));  // queued work may still use the old memory
    own.scratch.reset();
    own.scratch_bytes = std::max<int64_t>(bytes, int64_t{1} << 20);
    own.scratch = allocate(stream.device(), own.scratch_bytes);
  }
  return own.scratch.get();
}

}  // namespace pkmesh::cuda
