// SPDX-License-Identifier: Apache-2.0
#include "layers/cross_entropy.h"

#include "tests/reference/cross_entropy.h"
#include "tests/reference/tensor.h"

namespace pkmesh {
namespace {

using namespace reference;
constexpr double kLossTolerance = 2e-6;
constexpr double kGradientTolerance = 5e-6;

struct Case {
  int64_t tokens, width, vocabulary, chunk;
};

std::vector<int32_t> make_targets(const Case& c) {
  const Random random(4, "targets");
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < c.tokens; ++t)
    targets.push_back(static_cast<int32_t>(random.bits(static_cast<uint64_t>(t)) % c.vocabulary));
  return targets;
}

class CrossEntropyTest : public testing::TestWithParam<Case> {};

TEST_P(CrossEntropyTest, LossesAndGradients) {
  const Case c = GetParam();
  Stream stream;
  const Numbers x = normals("x", c.tokens * c.width);
  const Numbers embedding = normals("embedding", c.vocabulary * c.width);
  const std::vector<int32_t> targets = make_targets(c);
  const Vector<const int32_t> targets_view(targets.data(), c.tokens);
  const double scale = 0.25;
  Tensor<float> x_float(x);
  Tensor<float> embedding_float(embedding);
  Tensor<float> scratch(c.chunk * c.vocabulary);
  Tensor<float> losses(c.tokens);
  Tensor<float> trained(c.tokens);
  Tensor<float> dx(c.tokens * c.width);
  Tensor<float> dembedding(c.vocabulary * c.width, 0.0F);
  const auto x_view = x_float.view(c.tokens, c.width);
  const auto embedding_view = embedding_float.view(c.vocabulary, c.width);
  const auto scratch_view = scratch.view(c.chunk, c.vocabulary);
  const auto dembedding_view = dembedding.view(c.vocabulary, c.width);
  cross_entropy_forward(stream, x_view, embedding_view, targets_view, scratch_view, losses.view());
  cross_entropy_train(stream, x_view, embedding_view, targets_view, static_cast<float>(scale), scratch_view,
                      trained.view(), dx.view(c.tokens, c.width), dembedding_view);
  const Numbers expected = cross_entropy(x, embedding, targets, c.width);
  expect_near("losses", losses, expected, kLossTolerance);
  expect_near("losses in training", trained, expected, kLossTolerance);
  const auto loss = [&](const Numbers& at_x, const Numbers& at_embedding) {
    const Numbers all = cross_entropy(at_x, at_embedding, targets, c.width);
    return scale * std::accumulate(all.begin(), all.end(), 0.0);
  };
  expect_gradient(
      "dx", dx, x, [&](const Numbers& at) { return loss(at, embedding); }, kGradientTolerance, 25);
  expect_gradient(
      "dembedding", dembedding, embedding, [&](const Numbers& at) { return loss(x, at); }, kGradientTolerance, 25);
  const std::vector<float> once = dembedding.values();
  cross_entropy_train(stream, x_view, embedding_view, targets_view, static_cast<float>(scale), scratch_view,
                      trained.view(), dx.view(c.tokens, c.width), dembedding_view);
  for (size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(dembedding.data()[i], 2 * once[i], 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CrossEntropyTest,
                         testing::Values(Case{0, 3, 4, 2}, Case{1, 1, 1, 1}, Case{1, 4, 7, 5}, Case{9, 5, 33, 4},
                                         Case{16, 3, 65, 16}, Case{11, 2, 4099, 3}));

TEST(CrossEntropyTest, LargeLogitsAreExactInTheLimit) {
  Stream stream;
  Tensor<float> x(Numbers{100, -100, 100});
  Tensor<float> embedding(Numbers{2, -3});
  Tensor<float> scratch(4);
  Tensor<float> losses(3);
  const std::vector<int32_t> targets = {0, 0, 1};
  cross_entropy_forward(stream, x.view(3, 1), embedding.view(2, 1), Vector<const int32_t>(targets.data(), 3),
                        scratch.view(2, 2), losses.view());
  expect_near("losses", losses, {0, 500, 500}, 0);
}

TEST(CrossEntropyTest, ANanShowsInTheLossOfItsToken) {
  Stream stream;
  Tensor<float> x(Numbers{1, std::nan(""), 1});
  Tensor<float> embedding(Numbers(20, 0.5));
  Tensor<float> scratch(60);
  Tensor<float> losses(3);
  const std::vector<int32_t> targets = {0, 3, 1};
  cross_entropy_forward(stream, x.view(3, 1), embedding.view(20, 1), Vector<const int32_t>(targets.data(), 3),
                        scratch.view(3, 20), losses.view());
  EXPECT_TRUE(std::isfinite(losses.data()[0]));
  EXPECT_TRUE(std::isnan(losses.data()[1]));
  EXPECT_TRUE(std::isfinite(losses.data()[2]));
}

TEST(CrossEntropyTest, RefusesTargetsOutsideTheVocabulary) {
  Stream stream;
  Tensor<float> one(1, 1.0F);
  for (const int32_t bad : {-2, 1}) {
    const auto v = one.view(1, 1);
    EXPECT_THROW(cross_entropy_forward(stream, v, v, Vector<const int32_t>(&bad, 1), v, one.view()), InternalError);
  }
}

}  // namespace
}  // namespace pkmesh
