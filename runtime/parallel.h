// SPDX-License-Identifier: Apache-2.0
// Loops over this rank's cores. The split depends on (begin, end, grain) and the thread count alone, so results repeat.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

namespace pkmesh {

// Threads a parallel loop of this rank uses (OMP_NUM_THREADS, or set_threads()).
int threads();
void set_threads(int count);
// Whether this is called from inside a parallel loop, where a further one would run on one thread.
bool in_parallel();

// What a loop's bodies throw, for an exception must not leave its thread.
class Thrown {
 public:
  Thrown();
  ~Thrown();
  Thrown(const Thrown&) = delete;
  Thrown& operator=(const Thrown&) = delete;

  void keep() noexcept;  // the exception at hand; of several the first
  void rethrow() const;  // it, if there is one

 private:
  std::atomic_flag any_;
  std::exception_ptr first_;
};

// Calls body(begin, end) for consecutive pieces of [begin, end), at most one per thread, none smaller than `grain`.
// The body must not depend on how the range was cut. If it throws, one exception is thrown on, after all pieces.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  const int64_t count = end - begin;
  if (count <= 0) return;
  const int64_t pieces = std::clamp<int64_t>(count / std::max<int64_t>(grain, 1), 1, threads());
  if (pieces == 1) return body(begin, end);
  Thrown thrown;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast <int>(pieces))
  for (int64_t piece = 0; piece < pieces; ++piece) {
    try {
      body(begin + count * piece / pieces, begin + count * (piece + 1) / pieces);
    } catch (...) {
      thrown.keep();
    }
  }
  thrown.rethrow();
}

}  // namespace pkmesh
