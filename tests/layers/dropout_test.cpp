// SPDX-License-Identifier: Apache-2.0
#include "layers/dropout.h"

#include "comm/self.h"
#include "layers/block.h"
#include "tests/reference/attention.h"
#include "tests/reference/tensor.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

using namespace reference;

Dropout make_mask(float probability, int64_t first_index = 0) {
  return {Random(5, "layer 0 output", 9), probability, first_index};
}

TEST(Dropout, EachElementFollowsItsOwnRandomNumber) {
  Stream stream;
  for (const auto& [tokens, width] : std::vector<std::array<int64_t, 2>>{{0, 3}, {1, 1}, {7, 5}, {61, 97}}) {
    for (const int64_t first : {0, 1, 6, 4097}) {
      const Dropout mask = make_mask(0.3F, first);
      const Numbers x = normals("x", tokens * width);
      Numbers expected = x;
      for (int64_t i = 0; i < tokens * width; ++i) expected[i] *= keep_factor(mask, i);
      Tensor<float> x_float(x);
      Tensor<float> y(tokens * width);
      dropout(stream, x_float.view(tokens, width), mask, y.view(tokens, width));
      expect_near("y", y, expected, 3e-7);
    }
  }
}

TEST(Dropout, DropsTheShareItSaysAndKeepsTheMean) {
  Stream stream;
  constexpr int64_t kCount = 200000;
  for (const float p : {0.1F, 0.5F, 0.9F}) {
    Tensor<float> x(kCount, 1.0F);
    dropout(stream, x.view(1, kCount), make_mask(p), x.view(1, kCount));
    double zeros = 0;
    double sum = 0;
    for (const float value : x.values()) {
      zeros += value == 0.0F;
      sum += value;
    }
    EXPECT_NEAR(zeros / kCount, p, 0.005);
    EXPECT_NEAR(sum / kCount, 1.0, 0.03);
  }
}

// What one rank draws for all tokens is what two ranks draw for their halves, and threads do not matter.
TEST(Dropout, TheMaskDependsNeitherOnRanksNorOnThreads) {
  Stream stream;
  constexpr int64_t kTokens = 150;
  constexpr int64_t kWidth = 101;
  Tensor<float> x(normals("x", kTokens * kWidth));
  const ThreadScope single(1);
  Tensor<float> whole(kTokens * kWidth);
  dropout(stream, x.view(kTokens, kWidth), make_mask(0.5F), whole.view(kTokens, kWidth));
  const ThreadScope several(3);
  Tensor<float> parts(kTokens * kWidth);
  for (const auto& [first, last] : std::vector<std::array<int64_t, 2>>{{0, 47}, {47, kTokens}})
    dropout(stream, x.view(kTokens, kWidth).rows(first, last), make_mask(0.5F, first * kWidth),
            parts.view(kTokens, kWidth).rows(first, last));
  EXPECT_TRUE(same_bits(whole, parts));
}

TEST(Dropout, ProbabilityZeroCopies) {
  Stream stream;
  Tensor<float> x(normals("x", 99));
  Tensor<float> y(99);
  dropout(stream, x.view(9, 11), Dropout{}, y.view(9, 11));
  EXPECT_TRUE(same_bits(x, y));
}

// A block that lets everything through: one token sees itself alone, so its attention weights are all 1, a head is one
// number wide, so an attention weight and an output of it have the same place in their masks. What is left of a number
// is 0, or 4 if it survives twice.
TEST(Dropout, AttentionWeightsAndOutputsAreDroppedIndependently) {
  constexpr int64_t kTokens = 200;
  constexpr int64_t kWidth = 8;
  Stream stream;
  Arena arena;
  SelfCommunicator world;
  Parameters parameters;
  const BlockShape shape = {
      .width = kWidth, .heads = kWidth, .ffn_width = 1, .pre_norm = true, .dropout = 0.5F, .attention_dropout = 0.5F};
  Block block(parameters, "block", shape, [](bool) { return nullptr; });
  parameters.allocate({}, 1);
  std::ranges::fill(parameters.values(), 0.0F);
  for (const auto& entry : parameters.entries())
    for (int64_t i = 0; i < kWidth; ++i) {
      if (entry.name == "block.attention.qkv.bias") parameters.values()[entry.offset + 2 * kWidth + i] = 1;
      if (entry.name == "block.attention.out.weight") parameters.values()[entry.offset + i * kWidth + i] = 1;
    }
  StepContext context{stream, arena, world, /*sequence_length=*/1};
  Tensor<float> x(kTokens * kWidth, 0.0F);
  int64_t survivors = 0;
  for (const float y : block.forward(context, x.view(kTokens, kWidth)).flat()) {
    ASSERT_TRUE(y == 0 || y == 4) << y;
    survivors += y == 4 ? 1 : 0;
  }
  EXPECT_NEAR(static_cast<double>(survivors) / (kTokens * kWidth), 0.25, 0.06);  // of one mask for both: a half
}

TEST(Dropout, RefusesProbabilitiesOutsideTheRange) {
  Stream stream;
  Tensor<float> x(1, 0.0F);
  for (const float p : {-0.1F, 1.0F, std::numeric_limits<float>::quiet_NaN()})
    EXPECT_THROW(dropout(stream, x.view(1, 1), make_mask(p), x.view(1, 1)), InternalError);
}

}  // namespace
}  // namespace pkmesh
