// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace pkmesh {

#ifdef _OPENMP
int threads() {
  return omp_get_max_threads();
}
void set_threads(int count) {
  omp_set_num_threads(count);
}
bool in_parallel() {
  return omp_in_parallel() != 0;
}
#else
int threads() {
  return 1;
}
void set_threads(int) {}
bool in_parallel() {
  return false;
}
#endif

Thrown::Thrown() = default;
Thrown::~Thrown() = default;

void Thrown::keep() noexcept {
  if (!any_.test_and_set()) first_ = std::current_exception();
}
void Thrown::rethrow() const {
  if (first_) std::rethrow_exception(first_);
}

}  // namespace pkmesh
