// SPDX-License-Identifier: Apache-2.0
// Small operations on whole tensors, seen as one row of numbers (use view.reshape(view.count())).
// Sums are taken in double over blocks of fixed size in one fixed order: they do not depend on the thread count.
#pragma once

#include "runtime/bf16.h"
#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

PKM_OP(fill, Vector<float> x, float value)
PKM_OP(add, Vector<const float> a, Vector<const float> b, Vector<float> y)  // y = a + b; y may be a or b

PKM_OP(narrow, Vector<const float> x, Vector<bf16> y)  // y = the nearest bf16 to x, ties to even
PKM_OP(widen, Vector<const bf16> x, Vector<float> y)   // y = x

// total[0] += sum of x. total (1) lives on the stream's device, so that nobody waits for it here.
PKM_OP(add_sum, Vector<const float> x, Vector<double> total)
// total[0] += sum of x^2, each square taken in double: no overflow.
PKM_OP(add_sum_of_squares, Vector<const float> x, Vector<double> total)

}  // namespace pkmesh
