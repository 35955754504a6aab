// SPDX-License-Identifier: Apache-2.0
#include "layers/attention_decode.h"

#include "layers/attention.h"
#include "tests/reference/attention.h"
#include "tests/reference/tensor.h"

namespace pkmesh {
namespace {

using namespace reference;
constexpr double kTolerance = 1e-5;

constexpr int64_t kSequences = 3;
constexpr int64_t kContext = 11;
constexpr int64_t kCapacity = 13;
constexpr int64_t kHeads = 2;
constexpr int64_t kWidth = 10;

Numbers rows(const Numbers& numbers, int64_t begin, int64_t end, int64_t width) {
  return {numbers.begin() + begin * width, numbers.begin() + end * width};
}

// Prompts of 4 tokens at once, then one token after the other, must give what the whole sequences give.
TEST(AttentionDecode, ContinuesAPromptAsIfAllHadBeenThereFromTheStart) {
  Stream stream;
  constexpr int64_t kPrompt = 4;
  const Numbers qkv = normals("qkv", kSequences * kContext * 3 * kWidth);
  const Numbers expected = attention(qkv, kSequences, kContext, kHeads, kWidth).output;
  Tensor<float> keys(kSequences * kCapacity * kWidth);
  Tensor<float> values(kSequences * kCapacity * kWidth);
  const auto key_cache = keys.view(kSequences, kCapacity, kWidth);
  const auto value_cache = values.view(kSequences, kCapacity, kWidth);
  Numbers prompts;
  for (int64_t s = 0; s < kSequences; ++s) {
    const Numbers prompt = rows(qkv, s * kContext, s * kContext + kPrompt, 3 * kWidth);
    prompts.insert(prompts.end(), prompt.begin(), prompt.end());
  }
  Tensor<float> prompts_float(prompts);
  attention_fill_cache(stream, prompts_float.view(kSequences * kPrompt, 3 * kWidth), key_cache, value_cache);
  for (int64_t p = kPrompt; p < kContext; ++p) {
    Numbers token;
    Numbers wanted;
    for (int64_t s = 0; s < kSequences; ++s) {
      const Numbers row = rows(qkv, s * kContext + p, s * kContext + p + 1, 3 * kWidth);
      token.insert(token.end(), row.begin(), row.end());
      const Numbers out = rows(expected, s * kContext + p, s * kContext + p + 1, kWidth);
      wanted.insert(wanted.end(), out.begin(), out.end());
    }
    Tensor<float> token_float(token);
    Tensor<float> output(kSequences * kWidth);
    const std::vector<int32_t> positions(kSequences, static_cast<int32_t>(p));
    attention_decode(stream, kHeads, token_float.view(kSequences, 3 * kWidth),
                     Vector<const int32_t>(positions.data(), kSequences), key_cache, value_cache,
                     output.view(kSequences, kWidth));
    expect_near("output", output, wanted, kTolerance);
  }
}

TEST(AttentionDecode, SequencesMayStandAtDifferentPositions) {
  Stream stream;
  const std::vector<int32_t> ends = {0, 10, 5};
  const Numbers qkv = normals("qkv", kSequences * kContext * 3 * kWidth);
  const Numbers expected = attention(qkv, kSequences, kContext, kHeads, kWidth).output;
  Tensor<float> keys(kSequences * kCapacity * kWidth);
  Tensor<float> values(kSequences * kCapacity * kWidth);
  Tensor<float> qkv_float(qkv);
  attention_fill_cache(stream, qkv_float.view(kSequences * kContext, 3 * kWidth),
                       keys.view(kSequences, kCapacity, kWidth), values.view(kSequences, kCapacity, kWidth));
  Numbers token;
  Numbers wanted;
  for (int64_t s = 0; s < kSequences; ++s) {
    const int64_t t = s * kContext + ends[static_cast<size_t>(s)];
    for (const double value : rows(qkv, t, t + 1, 3 * kWidth)) token.push_back(value);
    for (const double value : rows(expected, t, t + 1, kWidth)) wanted.push_back(value);
  }
  Tensor<float> token_float(token);
  Tensor<float> output(kSequences * kWidth);
  attention_decode(stream, kHeads, token_float.view(kSequences, 3 * kWidth),
                   Vector<const int32_t>(ends.data(), kSequences), keys.view(kSequences, kCapacity, kWidth),
                   values.view(kSequences, kCapacity, kWidth), output.view(kSequences, kWidth));
  expect_near("output", output, wanted, kTolerance);
}

TEST(AttentionDecode, RefusesAFullCache) {
  Stream stream;
  Tensor<float> qkv(6, 0.0F);
  Tensor<float> cache(4, 0.0F);
  Tensor<float> output(2, 0.0F);
  const int32_t position = 2;
  EXPECT_THROW(attention_decode(stream, 1, qkv.view(1, 6), Vector<const int32_t>(&position, 1), cache.view(1, 2, 2),
                                cache.view(1, 2, 2), output.view(1, 2)),
               InternalError);
  Tensor<float> long_prompt(18, 0.0F);
  EXPECT_THROW(attention_fill_cache(stream, long_prompt.view(3, 6), cache.view(1, 2, 2), cache.view(1, 2, 2)),
               InternalError);
}

}  // namespace
}  // namespace pkmesh
