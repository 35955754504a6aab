// SPDX-License-Identifier: Apache-2.0
#include "layers/elementwise.h"

#include "runtime/range.h"

namespace pkmesh {

void fill(Stream& stream, Vector<float> x, float value) {
  Range range("fill");
  PKM_DISPATCH(stream, fill, x, value);
}

void add(Stream& stream, Vector<const float> a, Vector<const float> b, Vector<float> y) {
  check_shape("add: b", b, {{"count", a.size(0)}});
  check_shape("add: y", y, {{"count", a.size(0)}});
  Range range("add");
  PKM_DISPATCH(stream, add, a, b, y);
}

void narrow(Stream& stream, Vector<const float> x, Vector<bf16> y) {
  check_shape("narrow: y", y, {{"count", x.size(0)}});
  Range range("narrow");
  PKM_DISPATCH(stream, narrow, x, y);
}

void widen(Stream& stream, Vector<const bf16> x, Vector<float> y) {
  check_shape("widen: y", y, {{"count", x.size(0)}});
  Range range("widen");
  PKM_DISPATCH(stream, widen, x, y);
}

void add_sum(Stream& stream, Vector<const float> x, Vector<double> total) {
  check_shape("add_sum: total", total, {{"one", 1}});
  Range range("add_sum");
  PKM_DISPATCH(stream, add_sum, x, total);
}

void add_sum_of_squares(Stream& stream, Vector<const float> x, Vector<double> total) {
  check_shape("add_sum_of_squares: total", total, {{"one", 1}});
  Range range("add_sum_of_squares");
  PKM_DISPATCH(stream, add_sum_of_squares, x, total);
}

}  // namespace pkmesh
