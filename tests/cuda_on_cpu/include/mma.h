// SPDX-License-Identifier: Apache-2.0
// Warp matrices: every lane holds, and computes, all of a fragment.
#pragma once

#include <cuda_runtime.h>

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16);
  float at[16][16];
};

inline void check_aligned(const void* memory) {
  if (reinterpret_cast<uintptr_t>(memory) % 32 != 0) __trap();
}

template <class Use, class T, class Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& to, const T* from, unsigned stride) {
  check_aligned(from);
  if (stride * sizeof(T) % 16 != 0) __trap();
  __syncwarp();
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned j = 0; j < 16; ++j)
      to.at[i][j] = static_cast<float>(std::is_same_v<Layout, row_major> ? from[i * stride + j] : from[j * stride + i]);
  __syncwarp();
}
inline void store_matrix_sync(float* to, const fragment<accumulator, 16, 16, 16, float>& from, unsigned stride,
                              layout_t) {
  check_aligned(to);
  if (stride % 4 != 0) __trap();
  __syncwarp();
  for (unsigned i = emulation::lane() / 2, j = emulation::lane() % 2 * 8, end = j + 8; j < end; ++j)
    to[i * stride + j] = from.at[i][j];
  __syncwarp();
}
template <class Use, class T, class Layout>
void fill_fragment(fragment<Use, 16, 16, 16, T, Layout>& to, float value) {
  for (auto& row : to.at)
    for (float& x : row) x = value;
}
template <class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& to, const fragment<matrix_a, 16, 16, 16, T, LayoutA>& a,
              const fragment<matrix_b, 16, 16, 16, T, LayoutB>& b, const fragment<accumulator, 16, 16, 16, float>& c) {
  fragment<accumulator, 16, 16, 16, float> result = c;
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 16; ++j) result.at[i][j] += a.at[i][k] * b.at[k][j];
  to = result;
}

}  // namespace nvcuda::wmma
