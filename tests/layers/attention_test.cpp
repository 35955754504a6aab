// SPDX-License-Identifier: Apache-2.0
#include "layers/attention.h"

#include "tests/reference/attention.h"
#include "tests/reference/tensor.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

using namespace reference;
constexpr double kTolerance = 1e-5;

struct Case {
  int64_t sequences, context, heads, head_width;
  float dropout;
};

// Forward and backward of one case.
struct Pass {
  Pass(const Case& c, const Numbers& qkv, const Numbers& doutput, const Dropout& mask)
      : output(static_cast<int64_t>(doutput.size())),
        logsumexp(c.heads * c.sequences * c.context),
        dqkv(static_cast<int64_t>(qkv.size())) {
    Stream stream;
    const AttentionShape shape = {c.sequences, c.context, c.heads};
    const int64_t tokens = shape.tokens();
    const int64_t width = c.heads * c.head_width;
    Tensor<float> qkv_float(qkv);
    Tensor<float> doutput_float(doutput);
    const auto lse = logsumexp.view(c.heads, tokens);
    attention_forward(stream, shape, qkv_float.view(tokens, 3 * width), mask, output.view(tokens, width), lse);
    attention_backward(stream, shape, qkv_float.view(tokens, 3 * width), output.view(tokens, width), lse,
                       doutput_float.view(tokens, width), mask, dqkv.view(tokens, 3 * width));
  }
  Tensor<float> output, logsumexp, dqkv;
};

class AttentionTest : public testing::TestWithParam<Case> {};

TEST_P(AttentionTest, ForwardAndBackward) {
  const Case c = GetParam();
  const int64_t tokens = c.sequences * c.context;
  const int64_t width = c.heads * c.head_width;
  const Numbers qkv = normals("qkv", tokens * 3 * width, 1.5);
  const Numbers doutput = normals("doutput", tokens * width);
  const Dropout mask = {Random(3, "attention"), c.dropout, 5};
  Pass pass(c, qkv, doutput, mask);
  const Attention expected = attention(qkv, c.sequences, c.context, c.heads, width, mask);
  expect_near("output", pass.output, expected.output, kTolerance);
  expect_near("logsumexp", pass.logsumexp, expected.logsumexp, 2e-6);
  const auto loss = [&](const Numbers& at) {
    return dot(attention(at, c.sequences, c.context, c.heads, width, mask).output, doutput);
  };
  expect_gradient("dqkv", pass.dqkv, qkv, loss, 2e-5, 60);
}

// Contexts around the block sizes, 64 queries and 256 keys.
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest,
                         testing::Values(Case{0, 4, 1, 2, 0}, Case{1, 0, 1, 2, 0}, Case{1, 1, 1, 1, 0},
                                         Case{2, 5, 3, 3, 0}, Case{3, 64, 2, 5, 0}, Case{1, 65, 2, 8, 0},
                                         Case{2, 130, 1, 4, 0}, Case{1, 256, 1, 3, 0}, Case{1, 323, 2, 2, 0},
                                         Case{2, 7, 2, 4, 0.3F}, Case{1, 301, 1, 3, 0.2F}));

TEST(AttentionTest, LargeScoresDoNotOverflow) {
  const Case c = {1, 70, 1, 4, 0};
  const Numbers qkv = normals("qkv", c.context * 12, 12.0);
  const Numbers doutput = normals("doutput", c.context * 4);
  Pass pass(c, qkv, doutput, {});
  expect_near("output", pass.output, attention(qkv, 1, c.context, 1, 4).output, 1e-3);
  for (const float value : pass.dqkv.values()) ASSERT_TRUE(std::isfinite(value));
}

TEST(AttentionTest, TheFutureDoesNotMatter) {
  const Case c = {1, 300, 2, 3, 0};
  Numbers qkv = normals("qkv", c.context * 18);
  const Numbers doutput(c.context * 6);
  Pass before(c, qkv, doutput, {});
  for (size_t i = 200 * 18; i < qkv.size(); ++i) qkv[i] = std::numeric_limits<double>::quiet_NaN();
  Pass after(c, qkv, doutput, {});
  // Blocks of queries are computed together, so only their rounding could differ; NaN times zero would show.
  for (size_t i = 0; i < 192 * 6; ++i) ASSERT_EQ(before.output.data()[i], after.output.data()[i]) << i;
}

TEST(AttentionTest, RepeatsBitForBitOnAnyThreadCountAndAnySplitOfTheSequences) {
  const Case c = {4, 70, 2, 4, 0.1F};
  const Numbers qkv = normals("qkv", c.sequences * c.context * 24);
  const Numbers doutput = normals("doutput", c.sequences * c.context * 8);
  const Dropout mask = {Random(3, "attention"), c.dropout, 0};
  const ThreadScope single(1);
  Pass whole(c, qkv, doutput, mask);
  const ThreadScope several(3);
  Pass again(c, qkv, doutput, mask);
  EXPECT_TRUE(same_bits(whole.output, again.output));
  EXPECT_TRUE(same_bits(whole.dqkv, again.dqkv));
  Case half = c;
  half.sequences = 2;
  Dropout second = mask;
  second.first_index = half.sequences * c.heads * c.context * c.context;
  const auto middle = [](const Numbers& numbers) { return numbers.begin() + static_cast<int64_t>(numbers.size()) / 2; };
  Pass tail(half, Numbers(middle(qkv), qkv.end()), Numbers(middle(doutput), doutput.end()), second);
  const auto values = whole.dqkv.values();
  EXPECT_EQ(tail.dqkv.values(),
            std::vector<float>(values.begin() + static_cast<int64_t>(values.size()) / 2, values.end()));
}

TEST(AttentionTest, RefusesHeadsThatDoNotDivideTheWidth) {
  Stream stream;
  Tensor<float> qkv(15, 0.0F);
  Tensor<float> output(5, 0.0F);
  Tensor<float> logsumexp(2, 0.0F);
  EXPECT_THROW(attention_forward(stream, {1, 1, 2}, qkv.view(1, 15), {}, output.view(1, 5), logsumexp.view(2, 1)),
               InternalError);
}

}  // namespace
}  // namespace pkmesh
