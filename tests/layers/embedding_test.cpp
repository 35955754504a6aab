// SPDX-License-Identifier: Apache-2.0
#include "layers/embedding.h"

#include "tests/reference/dense.h"
#include "tests/reference/tensor.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

using namespace reference;

constexpr int64_t kVocabulary = 11;
constexpr int64_t kContext = 4;

struct Batch {
  std::vector<int32_t> tokens, positions;
};

Batch make_batch(int64_t count) {
  const Random random(2, "tokens");
  Batch batch;
  for (int64_t t = 0; t < count; ++t) {
    batch.tokens.push_back(static_cast<int32_t>(random.bits(static_cast<uint64_t>(t)) % kVocabulary));
    batch.positions.push_back(static_cast<int32_t>(t % kContext));
  }
  return batch;
}

Vector<const int32_t> view(const std::vector<int32_t>& ids) {
  return Vector<const int32_t>(ids.data(), ids.size());
}

TEST(Embedding, ForwardAndBackward) {
  Stream stream;
  for (const int64_t count : {0, 1, 4, 57}) {
    for (const int64_t width : {1, 3, 16, 37, 130}) {
      const Batch batch = make_batch(count);
      const Numbers token_table = normals("token", kVocabulary * width);
      const Numbers position_table = normals("position", kContext * width);
      const Numbers dy = normals("dy", count * width);
      Tensor<float> token_float(token_table);
      Tensor<float> position_float(position_table);
      Tensor<float> dy_float(dy);
      Tensor<float> y(count * width);
      Tensor<float> dtoken(kVocabulary * width, 5.0F);
      Tensor<float> dposition(kContext * width, 6.0F);
      embedding_forward(stream, view(batch.tokens), view(batch.positions), token_float.view(kVocabulary, width),
                        position_float.view(kContext, width), y.view(count, width));
      embedding_backward(stream, view(batch.tokens), view(batch.positions), dy_float.view(count, width),
                         dtoken.view(kVocabulary, width), dposition.view(kContext, width));
      expect_near("y", y, embedding(batch.tokens, batch.positions, token_table, position_table, width), 1e-7);
      Numbers expected_token(token_table.size(), 5.0);
      Numbers expected_position(position_table.size(), 6.0);
      for (size_t i = 0; i < dy.size(); ++i) {
        const size_t t = i / static_cast<size_t>(width);
        const size_t j = i % static_cast<size_t>(width);
        expected_token[static_cast<size_t>(batch.tokens[t] * width) + j] += dy[i];
        expected_position[static_cast<size_t>(batch.positions[t] * width) + j] += dy[i];
      }
      expect_near("dtoken", dtoken, expected_token, 3e-6);
      expect_near("dposition", dposition, expected_position, 3e-6);
    }
  }
}

TEST(Embedding, BackwardDoesNotDependOnTheThreads) {
  constexpr int64_t kWidth = 150;
  constexpr int64_t kTokens = 64;
  Stream stream;
  const Batch batch = make_batch(kTokens);
  Tensor<float> dy(normals("dy", kTokens * kWidth));
  std::vector<std::vector<float>> seen;
  for (const int count : {1, 2, 3, 5, 1}) {
    const ThreadScope scope(count);
    Tensor<float> dtoken(kVocabulary * kWidth, 0.0F);
    Tensor<float> dposition(kContext * kWidth, 0.0F);
    embedding_backward(stream, view(batch.tokens), view(batch.positions), dy.view(kTokens, kWidth),
                       dtoken.view(kVocabulary, kWidth), dposition.view(kContext, kWidth));
    seen.push_back(dtoken.values());
  }
  for (size_t i = 1; i < seen.size(); ++i) EXPECT_EQ(seen[i], seen[0]);
}

TEST(Embedding, RefusesTokensAndPositionsOutsideTheTables) {
  Stream stream;
  Tensor<float> table(6, 0.0F);
  Tensor<float> y(2, 0.0F);
  const std::vector<int32_t> good = {1};
  for (const int32_t bad : {-1, 3}) {
    const std::vector<int32_t> id = {bad};
    const auto t = table.view(3, 2);
    EXPECT_THROW(embedding_forward(stream, view(id), view(good), t, t, y.view(1, 2)), InternalError);
    EXPECT_THROW(embedding_forward(stream, view(good), view(id), t, t, y.view(1, 2)), InternalError);
    EXPECT_THROW(embedding_backward(stream, view(id), view(good), y.view(1, 2), t, t), InternalError);
  }
}

}  // namespace
}  // namespace pkmesh
