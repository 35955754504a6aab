// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "runtime/parallel.h"

namespace pkmesh::reference {

// Computes with `count` threads to the end of the scope: which library multiplies may depend on it.
class ThreadScope {
 public:
  explicit ThreadScope(int count) : former_(threads()) { set_threads(count); }
  ~ThreadScope() { set_threads(former_); }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int former_;
};

}  // namespace pkmesh::reference
