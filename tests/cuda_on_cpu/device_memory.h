// SPDX-License-Identifier: Apache-2.0
// Memory of an emulated device. An access behind its end faults at once: the page there cannot be touched, and
// AddressSanitizer knows the bytes up to that page. It begins at a multiple of 64 bytes.
#pragma once

#include <cstddef>

namespace emulation {

class FencedMemory {
 public:
  explicit FencedMemory(size_t most);
  ~FencedMemory();
  FencedMemory(const FencedMemory&) = delete;
  FencedMemory& operator=(const FencedMemory&) = delete;

  // The last `bytes` of it, which end at the fence; their contents are undefined. Aborts if bytes behind those that
  // were given before have been written to.
  void resize(size_t bytes);
  std::byte* begin() const { return end_ - rounded_; }
  size_t bytes() const { return bytes_; }

 private:
  void check_end() const;

  size_t most_;
  std::byte* end_;
  size_t bytes_ = 0;
  size_t rounded_ = 0;
};

}  // namespace emulation
