// SPDX-License-Identifier: Apache-2.0
// Judges of the dense layers: the formulas as written, in double, one output at a time. Gradients are judged by finite
// differences of these. Widths and counts are taken from the sizes where they can be.
#pragma once

#include "tests/reference/numbers.h"

namespace pkmesh::reference {

// op(a) (m, k) times op(b) (k, n).
inline Numbers product(const Numbers& a, bool transpose_a, const Numbers& b, bool transpose_b, size_t m, size_t n,
                       size_t k) {
  Numbers c(m * n);
  for (size_t i = 0; i < m; ++i)
    for (size_t j = 0; j < n; ++j)
      for (size_t l = 0; l < k; ++l)
        c[i * n + j] += (transpose_a ? a[l * m + i] : a[i * k + l]) * (transpose_b ? b[j * k + l] : b[l * n + j]);
  return c;
}

// x (T, inputs), weight (outputs, inputs), bias (outputs) or empty.
inline Numbers linear(const Numbers& x, const Numbers& weight, const Numbers& bias, size_t tokens, size_t inputs,
                      size_t outputs) {
  Numbers y = product(x, false, weight, true, tokens, outputs, inputs);
  for (size_t i = 0; i < y.size() && !bias.empty(); ++i) y[i] += bias[i % outputs];
  return y;
}

inline Numbers gelu(Numbers x) {
  for (double& value : x) value *= 0.5 * std::erfc(-value / std::sqrt(2.0));
  return x;
}

inline Numbers silu_gate(Numbers y, const Numbers& gate) {
  for (size_t i = 0; i < y.size(); ++i) y[i] *= gate[i] / (1 + std::exp(-gate[i]));
  return y;
}

struct LayerNorm {
  Numbers y, mean, rstd;
};

inline LayerNorm layer_norm(const Numbers& x, const Numbers& gamma, const Numbers& beta, double epsilon) {
  const size_t width = gamma.size();
  LayerNorm result;
  for (size_t first = 0; first < x.size(); first += width) {
    const auto row = [&](size_t j) { return x[first + j]; };
    double mean = 0;
    double variance = 0;
    for (size_t j = 0; j < width; ++j) mean += row(j) / static_cast<double>(width);
    for (size_t j = 0; j < width; ++j) variance += (row(j) - mean) * (row(j) - mean) / static_cast<double>(width);
    const double rstd = 1 / std::sqrt(variance + epsilon);
    for (size_t j = 0; j < width; ++j) result.y.push_back((row(j) - mean) * rstd * gamma[j] + beta[j]);
    result.mean.push_back(mean);
    result.rstd.push_back(rstd);
  }
  return result;
}

inline Numbers embedding(const std::vector<int32_t>& tokens, const std::vector<int32_t>& positions,
                         const Numbers& token_table, const Numbers& position_table, size_t width) {
  Numbers y;
  for (size_t t = 0; t < tokens.size(); ++t)
    for (size_t j = 0; j < width; ++j)
      y.push_back(token_table[static_cast<size_t>(tokens[t]) * width + j] +
                  position_table[static_cast<size_t>(positions[t]) * width + j]);
  return y;
}

}  // namespace pkmesh::reference
