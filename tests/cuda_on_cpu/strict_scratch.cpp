// SPDX-License-Identifier: Apache-2.0
// A stream's scratch, stricter than the real one (runtime/cuda_stream.cu): each op gets memory of just the size that it
// asked for, with garbage inside, and the former op's is gone once the stream has got here.
#include "runtime/cuda_stream.h"
#include "tests/cuda_on_cpu/strict.h"

namespace pkmesh::cuda {

std::byte* scratch_bytes(Stream& stream, int64_t bytes) {
  StreamState& own = state(stream);
  emulation::enqueue(native(stream), [former = std::move(own.scratch)] {});
  own.scratch = emulation::fenced(static_cast<size_t>(bytes));
  own.scratch_bytes = bytes;
  return own.scratch.get();
}

}  // namespace pkmesh::cuda
