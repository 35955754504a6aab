// SPDX-License-Identifier: Apache-2.0
// The memory layer's CUDA kernels of queries, selection and batch norm, against the CPU's. Where inputs are small
// integers every sum is exact in any order, and results must be equal; elsewhere they agree to the tolerance beside the
// test.
#include <cmath>
#include <limits>

#include "layers/memory/batch_norm.h"
#include "layers/memory/select.h"
#include "tests/reference/draw.h"
#include "tests/reference/placed.h"

namespace pkmesh {
namespace {

using reference::Draw;
using reference::equal_bytes;
using reference::expect_close;
using reference::Placed;

using QueryCuda = reference::GpuTest;

struct SelectShape {
  int64_t tokens, heads, width, n, k;  // width of both halves
};

struct SelectInputs {
  SelectInputs(SelectShape s, int levels) : shape(s) {  // levels 0: normals
    Draw draw("select");
    const auto numbers = [&](int64_t count) { return levels > 0 ? draw.integers(count, levels) : draw.normals(count); };
    queries = numbers(s.tokens * s.heads * s.width);
    keys = numbers(s.heads * s.n * s.width);
    dweights = draw.normals(s.tokens * s.heads * s.k);
  }
  SelectShape shape;
  std::vector<float> queries, keys, dweights;
};

struct SelectResult {
  std::vector<int32_t> slots;
  std::vector<float> weights, dqueries, dkeys;
  bool same_bits(const SelectResult& other) const {
    return slots == other.slots && equal_bytes(weights, other.weights) && equal_bytes(dqueries, other.dqueries) &&
           equal_bytes(dkeys, other.dkeys);
  }
};

SelectResult select(Stream& stream, const SelectInputs& inputs) {
  const auto [tokens, heads, width, n, k] = inputs.shape;
  const Placed<float> queries(stream, inputs.queries);
  const Placed<float> keys(stream, inputs.keys);
  const Placed<float> dweights(stream, inputs.dweights);
  const Placed<int32_t> slots(stream, tokens * heads * k);
  const Placed<float> weights(stream, tokens * heads * k);
  const Placed<SubKeyGradient> scratch(stream, tokens * heads * 2 * k);
  const Placed<float> dqueries(stream, std::ssize(inputs.queries));
  const Placed<float> dkeys(stream, std::vector<float>(inputs.keys.size(), 0.5F));
  const auto query_view = queries.view(tokens, heads, width);
  const auto key_view = keys.view(heads, 2, n, width / 2);
  select_forward(stream, query_view, key_view, slots.view(tokens, heads * k), weights.view(tokens, heads * k));
  select_backward(stream, query_view, key_view, slots.view(tokens, heads * k), weights.view(tokens, heads * k),
                  dweights.view(tokens, heads * k), scratch.view(tokens, heads, 2, k),
                  dqueries.view(tokens, heads, width), dkeys.view(heads, 2, n, width / 2));
  return {slots.values(), weights.values(), dqueries.values(), dkeys.values()};
}

// Integers, so that scores are exact and ties abound: both devices must select the same slots. Several token blocks,
// sub-keys that thousands of tokens share, k = n, widths that are not aligned.
TEST_F(QueryCuda, SelectionAndItsGradientsEqualTheCpus) {
  constexpr double kTolerance = 2e-5;
  const SelectShape shapes[] = {{0, 2, 6, 5, 3},     {1, 1, 2, 1, 1},       {3, 1, 4, 7, 1},     {5, 2, 6, 5, 5},
                                {129, 3, 10, 37, 8}, {17, 2, 16, 100, 32},  {9, 1, 300, 67, 33}, {4, 2, 8, 150, 128},
                                {2, 1, 8, 600, 512}, {2200, 2, 8, 1000, 4}, {1500, 1, 64, 6, 3}};
  for (const SelectShape& shape : shapes)
    for (const int levels : {1, 2, 9}) {
      if (reference::quick() && shape.tokens * shape.n * shape.k > 100'000) continue;
      SCOPED_TRACE(fmt::format("tokens {} heads {} width {} n {} k {} levels {}", shape.tokens, shape.heads,
                               shape.width, shape.n, shape.k, levels));
      const SelectInputs inputs(shape, levels);
      const auto [expected, actual] = on_both([&](Stream& stream) { return select(stream, inputs); });
      EXPECT_EQ(actual.slots, expected.slots);
      expect_close("weights", actual.weights, expected.weights, kTolerance);
      // A sub-key's gradient is a sum over up to all tokens.
      const double terms = std::sqrt(static_cast<double>(std::max<int64_t>(shape.tokens, 1)));
      expect_close("dqueries", actual.dqueries, expected.dqueries, kTolerance * levels);
      expect_close("dkeys", actual.dkeys, expected.dkeys, kTolerance * levels * terms);
    }
}

TEST_F(QueryCuda, NotANumberReachesTheWeights) {
  SelectInputs inputs({4, 1, 4, 200, 8}, 0);
  inputs.queries[5] = std::nanf("");                           // token 1: all scores of one half
  inputs.keys[150 * 2] = std::nanf("");                        // one sub-key, for every token
  inputs.queries[8] = std::numeric_limits<float>::infinity();  // token 2: infinities of both signs
  const auto [expected, actual] = on_both([&](Stream& stream) { return select(stream, inputs); });
  for (size_t i = 0; i < actual.weights.size(); ++i) {
    EXPECT_TRUE(std::isnan(actual.weights[i])) << i;
    EXPECT_GE(actual.slots[i], 0);
    EXPECT_LT(actual.slots[i], 200 * 200);
  }
}

struct NormResult {
  std::vector<double> sums, backward_sums;
  std::vector<float> mean, variance, running_mean, running_variance, normal, y, dweight, dbias, dx;
  bool same_bits(const NormResult& other) const {
    return equal_bytes(sums, other.sums) && equal_bytes(backward_sums, other.backward_sums) &&
           equal_bytes(y, other.y) && equal_bytes(dx, other.dx) &&
           equal_bytes(running_variance, other.running_variance) && equal_bytes(dweight, other.dweight);
  }
};

NormResult norm(Stream& stream, int64_t tokens, int64_t width) {
  constexpr float kEpsilon = 1e-5F;
  Draw draw("batch norm");
  const Placed<float> x(stream, draw.normals(tokens * width));   // becomes y
  const Placed<float> dy(stream, draw.normals(tokens * width));  // becomes dx
  const Placed<float> weight(stream, draw.normals(width));
  const Placed<float> bias(stream, draw.normals(width));
  const Placed<double> sums(stream, 2 * width + 1), backward_sums(stream, 2 * width);
  const Placed<float> mean(stream, width), variance(stream, width), normal(stream, tokens * width);
  const Placed<float> running_mean(stream, draw.normals(width)), running_variance(stream, draw.normals(width));
  const Placed<float> dweight(stream, draw.normals(width)), dbias(stream, draw.normals(width));
  const auto x_view = x.view(tokens, width);
  const auto dy_view = dy.view(tokens, width);
  const auto normal_view = normal.view(tokens, width);
  batch_norm_sums(stream, x_view, sums.view());
  batch_norm_statistics(stream, sums.view(), 0.1F, mean.view(), variance.view(), running_mean.view(),
                        running_variance.view());
  batch_norm_normalise(stream, x_view, mean.view(), variance.view(), kEpsilon, weight.view(), bias.view(), normal_view,
                       x_view);
  batch_norm_backward_sums(stream, normal_view, dy_view, backward_sums.view(2, width), dweight.view(), dbias.view());
  batch_norm_backward_apply(stream, normal_view, dy_view, sums.view(), backward_sums.view(2, width), variance.view(),
                            kEpsilon, weight.view(), dy_view);
  return {sums.values(),
          backward_sums.values(),
          mean.values(),
          variance.values(),
          running_mean.values(),
          running_variance.values(),
          normal.values(),
          x.values(),
          dweight.values(),
          dbias.values(),
          dy.values()};
}

TEST_F(QueryCuda, BatchNormEqualsTheCpus) {
  constexpr double kTolerance = 1e-5;
  constexpr double kDoubleTolerance = 1e-10;  // `normal`, from which the last sums are made, is in fp32
  for (const int64_t tokens : {0, 1, 2, 65, 5000})
    for (const int64_t width : {1, 7, 129}) {
      SCOPED_TRACE(fmt::format("{} tokens of {}", tokens, width));
      const auto [expected, actual] = on_both([&](Stream& stream) { return norm(stream, tokens, width); });
      expect_close("sums", actual.sums, expected.sums, kDoubleTolerance);
      expect_close("backward sums", actual.backward_sums, expected.backward_sums, kTolerance);
      expect_close("mean", actual.mean, expected.mean, kTolerance);
      expect_close("variance", actual.variance, expected.variance, kTolerance);
      expect_close("running mean", actual.running_mean, expected.running_mean, kTolerance);
      expect_close("running variance", actual.running_variance, expected.running_variance, kTolerance);
      expect_close("y", actual.y, expected.y, kTolerance);
      expect_close("dweight", actual.dweight, expected.dweight, kTolerance);
      expect_close("dbias", actual.dbias, expected.dbias, kTolerance);
      // One or two tokens have next to no variance, and 1 / its root multiplies every rounding.
      if (tokens == 0 || tokens > 2) expect_close("dx", actual.dx, expected.dx, kTolerance);
    }
}

}  // namespace
}  // namespace pkmesh
