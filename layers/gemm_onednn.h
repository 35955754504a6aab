// SPDX-License-Identifier: Apache-2.0
// For gemm_cpu.cpp: large matrix products by oneDNN on CPUs with AVX-512 but without matrix tiles, in fp32, or with
// operands rounded to bf16, which is faster where the CPU multiplies those. docs/benchmarks.md holds it against BLAS.
#pragma once

#include <memory>

#include "layers/gemm.h"

namespace pkmesh {

class OneDnnProducts {
 public:
  // What belongs to the stream, made at its first product.
  static OneDnnProducts& of(Stream& stream);

  OneDnnProducts();
  ~OneDnnProducts();
  OneDnnProducts(const OneDnnProducts&) = delete;
  OneDnnProducts& operator=(const OneDnnProducts&) = delete;

  // Whether oneDNN is the one for a large product: this CPU has what it needs, and c has rows without gaps.
  static bool suits(Math math, MatrixSlice<float> c);

  // c = op(a) op(b), added to what is there if `accumulate`; sizes as for gemm(), kFp32 or kBf16; from one thread at a
  // time. In a steady step no memory is taken but oneDNN's lists of arguments. bias (columns of c) is added to every
  // row; empty: none; not with `accumulate`.
  void multiply(Math math, Transpose transpose_a, Transpose transpose_b, MatrixSlice<const float> a,
                MatrixSlice<const float> b, Vector<const float> bias, bool accumulate, MatrixSlice<float> c);

 private:
  struct Engine;  // oneDNN's, its products by shape, and scratch
  std::unique_ptr<Engine> engine_;
};

}  // namespace pkmesh
