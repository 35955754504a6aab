// SPDX-License-Identifier: Apache-2.0
#include "layers/memory/select.h"

#include "runtime/range.h"

namespace pkmesh {
namespace {

// Returns k.
int64_t check(View<const float, 3> queries, View<const float, 4> keys, Matrix<const int32_t> slots,
              Matrix<const float> weights) {
  const int64_t heads = queries.size(1);
  const int64_t n = keys.size(2);
  PKM_CHECK(heads > 0 && queries.size(2) >= 2 && queries.size(2) % 2 == 0, "select: {} heads of width {}", heads,
            queries.size(2));
  PKM_CHECK(slots.size(1) % heads == 0, "select: {} selections for {} heads", slots.size(1), heads);
  const int64_t k = slots.size(1) / heads;
  PKM_CHECK(k >= 1 && k <= n && n <= kMaxSubKeys, "select: {} neighbours of {} sub-keys", k, n);
  check_shape("select: keys", keys, {{"heads", heads}, {"halves", 2}, {"sub-keys", n}, {"width", queries.size(2) / 2}});
  check_shape("select: slots", slots, {{"tokens", queries.size(0)}, {"heads * k", heads * k}});
  check_shape("select: weights", weights, {{"tokens", queries.size(0)}, {"heads * k", heads * k}});
  return k;
}

}  // namespace

void select_forward(Stream& stream, View<const float, 3> queries, View<const float, 4> keys, Matrix<int32_t> slots,
                    Matrix<float> weights) {
  check(queries, keys, slots, weights);
  const Range range("select forward");
  PKM_DISPATCH(stream, select_forward, queries, keys, slots, weights);
}

void select_backward(Stream& stream, View<const float, 3> queries, View<const float, 4> keys,
                     Matrix<const int32_t> slots, Matrix<const float> weights, Matrix<const float> dweights,
                     View<SubKeyGradient, 4> scratch, View<float, 3> dqueries, View<float, 4> dkeys) {
  const int64_t k = check(queries, keys, slots, weights);
  const int64_t tokens = queries.size(0);
  const int64_t heads = queries.size(1);
  check_shape("select: dweights", dweights, {{"tokens", tokens}, {"heads * k", heads * k}});
  check_shape("select: scratch", scratch, {{"tokens", tokens}, {"heads", heads}, {"halves", 2}, {"k", k}});
  PKM_CHECK(dqueries.shape() == queries.shape() && dkeys.shape() == keys.shape(),
            "select: a gradient differs in shape from what it is the gradient of");
  const Range range("select backward");
  PKM_DISPATCH(stream, select_backward, queries, keys, slots, weights, dweights, scratch, dqueries, dkeys);
}

}  // namespace pkmesh
