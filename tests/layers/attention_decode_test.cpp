// SPDX-License-Identifier: Apache-2.0
#include "layers/attention_decode.h"

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

// The tokens of all sequences at position p.
Numbers at_position(const Numbers& numbers, int64_t p, int64_t width) {
  Numbers tokens;
  for (int64_t s = 0; s < kSequences; ++s) {
    const Numbers token = rows(numbers, s * kContext + p, s * kContext + p + 1, width);
    tokens.insert(tokens.end(), token.begin(), token.end());
  }
  return tokens;
}

void decode(Stream& stream, const Numbers& tokens, const std::vector<int32_t>& positions, Tensor<float>& keys,
            Tensor<float>& values, Tensor<float>& output) {
  Tensor<float> qkv(tokens);
  attention_decode(stream, kHeads, qkv.view(kSequences, 3 * kWidth),
                   Vector<const int32_t>(positions.data(), kSequences), keys.view(kSequences, kCapacity, kWidth),
                   values.view(kSequences, kCapacity, kWidth), output.view(kSequences, kWidth));
}

// One token after the other must give what the whole sequences give.
TEST(AttentionDecode, ContinuesAsIfAllHadBeenThereFromTheStart) {
  Stream stream;
  const Numbers qkv = normals("qkv", kSequences * kContext * 3 * kWidth);
  const Numbers expected = attention(qkv, kSequences, kContext, kHeads, kWidth).output;
  Tensor<float> keys(kSequences * kCapacity * kWidth);
  Tensor<float> values(kSequences * kCapacity * kWidth);
  for (int64_t p = 0; p < kContext; ++p) {
    Tensor<float> output(kSequences * kWidth);
    const std::vector<int32_t> positions(kSequences, static_cast<int32_t>(p));
    decode(stream, at_position(qkv, p, 3 * kWidth), positions, keys, values, output);
    expect_near("output", output, at_position(expected, p, kWidth), kTolerance);
  }
}

TEST(AttentionDecode, SequencesMayStandAtDifferentPositions) {
  Stream stream;
  const std::vector<int32_t> ends = {0, 10, 5};
  const Numbers qkv = normals("qkv", kSequences * kContext * 3 * kWidth);
  const Numbers expected = attention(qkv, kSequences, kContext, kHeads, kWidth).output;
  Tensor<float> keys(kSequences * kCapacity * kWidth);
  Tensor<float> values(kSequences * kCapacity * kWidth);
  Tensor<float> output(kSequences * kWidth);
  for (int64_t p = 0; p < kContext; ++p)  // the caches know more than each sequence may see
    decode(stream, at_position(qkv, p, 3 * kWidth), std::vector<int32_t>(kSequences, static_cast<int32_t>(p)), keys,
           values, output);
  Numbers token;
  Numbers wanted;
  for (int64_t s = 0; s < kSequences; ++s) {
    const int64_t t = s * kContext + ends[static_cast<size_t>(s)];
    for (const double value : rows(qkv, t, t + 1, 3 * kWidth)) token.push_back(value);
    for (const double value : rows(expected, t, t + 1, kWidth)) wanted.push_back(value);
  }
  decode(stream, token, ends, keys, values, output);
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
}

}  // namespace
}  // namespace pkmesh
