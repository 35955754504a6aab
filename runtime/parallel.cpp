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
#else
int threads() {
  return 1;
}
void set_threads(int) {}
#endif

}  // namespace pkmesh
