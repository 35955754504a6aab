// SPDX-License-Identifier: Apache-2.0
// The dense ops on a CUDA device against the same ops on the CPU, which the references of the other tests judge.
// Tolerances allow for fp32 sums in another order; 0 where both devices must do the same operations.
#include "layers/attention.h"
#include "layers/attention_decode.h"
#include "layers/cross_entropy.h"
#include "layers/dropout.h"
#include "layers/elementwise.h"
#include "layers/embedding.h"
#include "layers/gelu.h"
#include "layers/gemm.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/silu_gate.h"
#include "tests/reference/parity.h"

namespace pkmesh {
namespace {

using namespace reference;

using DenseCuda = ParityTest;

struct Size {
  int64_t tokens, width;
};
const std::vector<Size> kSizes = {{0, 5}, {1, 1}, {3, 7}, {33, 129}, {300, 65}};

Numbers indices(std::string_view name, int64_t count, int64_t below) {
  const Random random(2, name);
  Numbers numbers;
  for (int64_t i = 0; i < count; ++i)
    numbers.push_back(static_cast<double>(random.bits(static_cast<uint64_t>(i)) % static_cast<uint64_t>(below)));
  return numbers;
}

TEST_F(DenseCuda, CopyGoesThereAndBack) {
  const Numbers numbers = normals("copy", 1001);
  Twin<> tensor(cuda(), numbers);
  tensor.expect_parity("copy", 0);
}

TEST_F(DenseCuda, Gemm) {
  for (const auto& [m, n, k] :
       std::vector<std::array<int64_t, 3>>{{1, 1, 1}, {3, 5, 7}, {65, 33, 70}, {0, 4, 3}, {4, 0, 3}, {4, 3, 0}}) {
    for (int flips = 0; flips < 4; ++flips) {
      const auto transpose_a = (flips & 1) != 0 ? Transpose::kYes : Transpose::kNo;
      const auto transpose_b = (flips & 2) != 0 ? Transpose::kYes : Transpose::kNo;
      Twin<> a(cuda(), normals("a", m * k));
      Twin<> b(cuda(), normals("b", k * n));
      Twin<> added(cuda(), normals("c", m * n));
      Twin<> written(cuda(), m * n);  // from NaN
      on_both([&](const Side& on) {
        const Matrix<const float> left = transpose_a == Transpose::kYes ? on(a, k, m) : on(a, m, k);
        const Matrix<const float> right = transpose_b == Transpose::kYes ? on(b, n, k) : on(b, k, n);
        gemm(on.stream, transpose_a, transpose_b, 0.5F, left, right, 2.0F, on(added, m, n));
        gemm(on.stream, transpose_a, transpose_b, 1.0F, left, right, 0.0F, on(written, m, n));
      });
      added.expect_parity("added", 1e-5);
      written.expect_parity("written", 1e-5);
    }
  }
}

TEST_F(DenseCuda, GemmOfSlices) {
  Twin<> a(cuda(), normals("a", 4 * 10));
  Twin<> b(cuda(), normals("b", 3 * 2));
  Twin<> c(cuda(), normals("c", 4 * 5));
  on_both([&](const Side& on) {
    const Matrix<const float> left = on(a, 4, 10);
    gemm(on.stream, Transpose::kNo, Transpose::kNo, 1.0F, columns_of(left, 6, 9), on(b, 3, 2), 0.5F,
         columns_of(on(c, 4, 5), 1, 3));
    gemm(on.stream, Transpose::kNo, Transpose::kNo, 1.0F, columns_of(left, 2, 2), on(b, 3, 2).rows(0, 0), 3.0F,
         columns_of(on(c, 4, 5), 3, 5));
  });
  c.expect_parity("c", 1e-6);
}

TEST_F(DenseCuda, Linear) {
  for (const auto& [tokens, width] : kSizes) {
    const int64_t outputs = 2 * width + 1;
    Twin<> x(cuda(), normals("x", tokens * width));
    Twin<> weight(cuda(), normals("weight", outputs * width));
    Twin<> bias(cuda(), normals("bias", outputs));
    Twin<> dy(cuda(), normals("dy", tokens * outputs));
    Twin<> y(cuda(), tokens * outputs);
    Twin<> plain(cuda(), tokens * outputs);
    Twin<> dx(cuda(), tokens * width);
    Twin<> dweight(cuda(), normals("dweight", outputs * width));
    Twin<> dbias(cuda(), normals("dbias", outputs));
    on_both([&](const Side& on) {
      const auto in = on(x, tokens, width);
      linear_forward(on.stream, in, on(weight, outputs, width), on(bias, outputs), on(y, tokens, outputs));
      linear_forward(on.stream, in, on(weight, outputs, width), {}, on(plain, tokens, outputs));
      linear_backward(on.stream, in, on(weight, outputs, width), on(dy, tokens, outputs), on(dx, tokens, width),
                      on(dweight, outputs, width), on(dbias, outputs));
    });
    y.expect_parity("y", 1e-5);
    plain.expect_parity("y without bias", 1e-5);
    dx.expect_parity("dx", 2e-5);
    dweight.expect_parity("dweight", 2e-5);
    dbias.expect_parity("dbias", 1e-5);
  }
}

TEST_F(DenseCuda, ColumnSumsOverManyChunks) {
  constexpr int64_t kTokens = 9000;  // more than 64 chunks of 128
  Twin<> x(cuda(), Numbers(static_cast<size_t>(kTokens), 1.0));
  Twin<> weight(cuda(), normals("weight", 3));
  Twin<> dy(cuda(), normals("dy", kTokens * 3));
  Twin<> dbias(cuda(), normals("dbias", 3));
  on_both([&](const Side& on) {
    linear_backward(on.stream, on(x, kTokens, 1), on(weight, 3, 1), on(dy, kTokens, 3), {}, {}, on(dbias, 3));
  });
  dbias.expect_parity("dbias", 1e-5);
}

TEST_F(DenseCuda, GeluAndSiluGate) {
  for (const auto& [tokens, width] : kSizes) {
    const int64_t count = tokens * width;
    Twin<> x(cuda(), normals("x", count, 3.0));
    Twin<> gate(cuda(), normals("gate", count, 3.0));
    Twin<> dy(cuda(), normals("dy", count));
    Twin<> gelu(cuda(), count);
    Twin<> gelu_dx(cuda(), count);
    Twin<> gated(cuda(), count);
    Twin<> gated_dy(cuda(), count);
    Twin<> dgate(cuda(), count);
    on_both([&](const Side& on) {
      const auto view = [&](Twin<>& tensor) { return on(tensor, tokens, width); };
      gelu_forward(on.stream, view(x), view(gelu));
      gelu_backward(on.stream, view(x), view(dy), view(gelu_dx));
      silu_gate_forward(on.stream, view(x), view(gate), view(gated));
      silu_gate_backward(on.stream, view(x), view(gate), view(dy), view(gated_dy), view(dgate));
      silu_gate_backward(on.stream, view(x), view(gate), view(dy), view(dy), view(dgate));  // dy over dz
    });
    gelu.expect_parity("gelu", 2e-6);
    gelu_dx.expect_parity("gelu: dx", 2e-6);
    gated.expect_parity("silu_gate", 2e-6);
    gated_dy.expect_parity("silu_gate: dy", 2e-6);
    dgate.expect_parity("silu_gate: dgate", 3e-6);
    dy.expect_parity("silu_gate: dy in place", 2e-6);
  }
}

TEST_F(DenseCuda, LayerNorm) {
  for (const auto& [tokens, width] : kSizes) {
    const int64_t count = tokens * width;
    Twin<> a(cuda(), normals("a", count, 2.0));
    Twin<> b(cuda(), normals("b", count));
    Twin<> gamma(cuda(), normals("gamma", width));
    Twin<> beta(cuda(), normals("beta", width));
    Twin<> dy(cuda(), normals("dy", count));
    Twin<> y(cuda(), count);
    Twin<> residual_y(cuda(), count);
    Twin<> sum(cuda(), count);
    Twin<> mean(cuda(), tokens);
    Twin<> rstd(cuda(), tokens);
    Twin<> dx(cuda(), count);
    Twin<> dgamma(cuda(), normals("dgamma", width));
    Twin<> dbeta(cuda(), normals("dbeta", width));
    on_both([&](const Side& on) {
      const auto view = [&](Twin<>& tensor) { return on(tensor, tokens, width); };
      const auto means = on(mean, tokens);
      const auto rstds = on(rstd, tokens);
      layer_norm_forward(on.stream, view(a), on(gamma, width), on(beta, width), 1e-2F, view(y), means, rstds);
      residual_layer_norm_forward(on.stream, view(a), view(b), on(gamma, width), on(beta, width), 1e-2F, view(sum),
                                  view(residual_y), means, rstds);
      layer_norm_backward(on.stream, view(sum), on(gamma, width), means, rstds, view(dy), {}, view(dx),
                          on(dgamma, width), on(dbeta, width));
      layer_norm_backward(on.stream, view(sum), on(gamma, width), means, rstds, view(dy), view(b), view(dy),
                          on(dgamma, width), on(dbeta, width));  // dx over dy, with dskip
      layer_norm_forward(on.stream, view(a), on(gamma, width), on(beta, width), 1e-2F, view(a), means, rstds);
    });
    y.expect_parity("y", 1e-5);
    sum.expect_parity("sum", 0);
    residual_y.expect_parity("y of the sum", 1e-5);
    mean.expect_parity("mean", 1e-6);
    rstd.expect_parity("rstd", 1e-5);
    dx.expect_parity("dx", 2e-5);
    dy.expect_parity("dx over dy", 2e-5);
    dgamma.expect_parity("dgamma", 2e-5);
    dbeta.expect_parity("dbeta", 1e-5);
    a.expect_parity("y over x", 1e-5);
  }
}

TEST_F(DenseCuda, EmbeddingAddsInTheOrderOfTheTokens) {
  constexpr int64_t kContext = 13;
  for (const int64_t vocabulary : {1, 2, 64, 1000})  // repeats, and rows that nobody reads
    for (const auto& [tokens, width] : kSizes) {
      Twin<int32_t> token(cuda(), indices("tokens", tokens, vocabulary));
      Twin<int32_t> position(cuda(), indices("positions", tokens, kContext));
      Twin<> table(cuda(), normals("table", vocabulary * width));
      Twin<> positions(cuda(), normals("position table", kContext * width));
      Twin<> y(cuda(), tokens * width);
      Twin<> dy(cuda(), normals("dy", tokens * width));
      Twin<> dtable(cuda(), normals("dtable", vocabulary * width));
      Twin<> dpositions(cuda(), normals("dpositions", kContext * width));
      on_both([&](const Side& on) {
        embedding_forward(on.stream, on(token, tokens), on(position, tokens), on(table, vocabulary, width),
                          on(positions, kContext, width), on(y, tokens, width));
        embedding_backward(on.stream, on(token, tokens), on(position, tokens), on(dy, tokens, width),
                           on(dtable, vocabulary, width), on(dpositions, kContext, width));
      });
      y.expect_parity("y", 0);
      dtable.expect_parity("dtoken_table", 0);
      dpositions.expect_parity("dposition_table", 0);
    }
}

TEST_F(DenseCuda, DropoutDrawsTheSameMask) {
  for (const float probability : {0.0F, 0.3F})
    for (const int64_t first_index : {int64_t{0}, int64_t{5}, int64_t{1} << 33})
      for (const auto& [tokens, width] : kSizes) {
        const Dropout mask = {Random(3, "mask", 17), probability, first_index};
        Twin<> x(cuda(), normals("x", tokens * width));
        Twin<> residual(cuda(), normals("residual", tokens * width));
        Twin<> y(cuda(), tokens * width);
        Twin<> sum(cuda(), tokens * width);
        on_both([&](const Side& on) {
          const auto view = [&](Twin<>& tensor) { return on(tensor, tokens, width); };
          dropout(on.stream, view(x), mask, view(y));
          dropout_add(on.stream, view(x), mask, view(residual), view(sum));
          dropout_add(on.stream, view(x), mask, view(residual), view(residual));  // in place
        });
        y.expect_parity("dropout", 0);
        sum.expect_parity("dropout_add", 1e-6);
        residual.expect_parity("dropout_add in place", 1e-6);
      }
}

struct AttentionCase {
  int64_t sequences, context, heads, head_width;
  float dropout;
};

TEST_F(DenseCuda, AttentionForwardAndBackward) {
  // Head widths and contexts around the sizes of the three kinds of tiles.
  for (const AttentionCase& c : std::vector<AttentionCase>{{0, 4, 1, 2, 0},
                                                           {1, 0, 1, 2, 0},
                                                           {1, 1, 1, 1, 0},
                                                           {2, 5, 3, 3, 0.3F},
                                                           {1, 64, 2, 64, 0},
                                                           {2, 65, 1, 20, 0},
                                                           {1, 130, 2, 5, 0.2F},
                                                           {1, 67, 2, 65, 0},
                                                           {2, 33, 1, 128, 0.1F},
                                                           {1, 35, 2, 129, 0},
                                                           {1, 49, 1, 256, 0.1F}}) {
    const AttentionShape shape = {c.sequences, c.context, c.heads};
    const int64_t tokens = shape.tokens();
    const int64_t width = c.heads * c.head_width;
    const Dropout mask = {Random(3, "attention"), c.dropout, 5};
    Twin<> qkv(cuda(), normals("qkv", tokens * 3 * width, 1.5));
    Twin<> doutput(cuda(), normals("doutput", tokens * width));
    Twin<> output(cuda(), tokens * width);
    Twin<> logsumexp(cuda(), c.heads * tokens);
    Twin<> dqkv(cuda(), tokens * 3 * width);
    on_both([&](const Side& on) {
      attention_forward(on.stream, shape, on(qkv, tokens, 3 * width), mask, on(output, tokens, width),
                        on(logsumexp, c.heads, tokens));
      attention_backward(on.stream, shape, on(qkv, tokens, 3 * width), on(output, tokens, width),
                         on(logsumexp, c.heads, tokens), on(doutput, tokens, width), mask, on(dqkv, tokens, 3 * width));
    });
    output.expect_parity("output", 2e-5);
    logsumexp.expect_parity("logsumexp", 5e-6);
    dqkv.expect_parity("dqkv", 1e-4);
  }
}

TEST_F(DenseCuda, AttentionRefusesHeadsThatDoNotFit) {
  Twin<> qkv(cuda(), Numbers(3 * 257, 0.0));
  Twin<> output(cuda(), 257);
  Twin<> logsumexp(cuda(), 1);
  EXPECT_THROW(
      attention_forward(cuda(), {1, 1, 1}, qkv.device(1, 3 * 257), {}, output.device(1, 257), logsumexp.device(1, 1)),
      UserError);
}

TEST_F(DenseCuda, AttentionDecodeAndFillCache) {
  constexpr int64_t kCapacity = 40;
  for (const auto& [sequences, context, heads, head_width, unused] : std::vector<AttentionCase>{
           {1, 1, 1, 1, 0}, {2, 5, 3, 3, 0}, {3, 33, 2, 64, 0}, {2, 39, 1, 100, 0}, {1, 7, 2, 256, 0}}) {
    const int64_t width = heads * head_width;
    const int64_t cached = sequences * kCapacity * width;
    Twin<> prompt(cuda(), normals("prompt", sequences * context * 3 * width));
    Twin<> qkv(cuda(), normals("qkv", sequences * 3 * width));
    Twin<> keys(cuda(), Numbers(static_cast<size_t>(cached), 0.0));
    Twin<> values(cuda(), Numbers(static_cast<size_t>(cached), 0.0));
    Twin<> output(cuda(), sequences * width);
    Numbers places;
    for (int64_t s = 0; s < sequences; ++s) places.push_back(static_cast<double>(std::max<int64_t>(0, context - s)));
    Twin<int32_t> positions(cuda(), places);
    on_both([&](const Side& on) {
      attention_fill_cache(on.stream, on(prompt, sequences * context, 3 * width), on(keys, sequences, kCapacity, width),
                           on(values, sequences, kCapacity, width));
      attention_decode(on.stream, heads, on(qkv, sequences, 3 * width), on(positions, sequences),
                       on(keys, sequences, kCapacity, width), on(values, sequences, kCapacity, width),
                       on(output, sequences, width));
    });
    keys.expect_parity("keys", 0);
    values.expect_parity("values", 0);
    output.expect_parity("output", 1e-5);
  }
}

TEST_F(DenseCuda, CrossEntropy) {
  for (const auto& [tokens, vocabulary, chunk] :
       std::vector<std::array<int64_t, 3>>{{0, 5, 2}, {1, 1, 1}, {7, 5, 3}, {20, 700, 8}, {33, 1500, 64}}) {
    constexpr int64_t kWidth = 9;
    Numbers targets = indices("targets", tokens, vocabulary);
    for (size_t t = 3; t < targets.size(); t += 5) targets[t] = kIgnoredTarget;
    Twin<int32_t> target(cuda(), targets);
    Twin<> x(cuda(), normals("x", tokens * kWidth));
    Twin<> embedding(cuda(), normals("embedding", vocabulary * kWidth));
    Twin<> scratch(cuda(), chunk * vocabulary);
    Twin<> losses(cuda(), tokens);
    Twin<> trained(cuda(), tokens);
    Twin<> dx(cuda(), tokens * kWidth);
    Twin<> dembedding(cuda(), normals("dembedding", vocabulary * kWidth));
    on_both([&](const Side& on) {
      const auto in = on(x, tokens, kWidth);
      const auto table = on(embedding, vocabulary, kWidth);
      cross_entropy_forward(on.stream, in, table, on(target, tokens), on(scratch, chunk, vocabulary),
                            on(losses, tokens));
      cross_entropy_train(on.stream, in, table, on(target, tokens), 0.25F, on(scratch, chunk, vocabulary),
                          on(trained, tokens), on(dx, tokens, kWidth), on(dembedding, vocabulary, kWidth));
    });
    losses.expect_parity("losses", 3e-6);
    trained.expect_parity("losses of training", 3e-6);
    dx.expect_parity("dx", 1e-5);
    dembedding.expect_parity("dembedding", 1e-5);
  }
}

TEST_F(DenseCuda, Elementwise) {
  for (const int64_t count : {0, 1, 31, 4097, 70001}) {
    Twin<> a(cuda(), normals("a", count));
    Twin<> b(cuda(), normals("b", count));
    Twin<> filled(cuda(), count);
    Twin<> sum(cuda(), count);
    Twin<double> total(cuda(), Numbers{2.5});
    Twin<double> squares(cuda(), Numbers{-1.5});
    on_both([&](const Side& on) {
      add(on.stream, on(a, count), on(b, count), on(sum, count));
      add_sum(on.stream, on(a, count), on(total, 1));
      add_sum_of_squares(on.stream, on(a, count), on(squares, 1));
      scale(on.stream, on(b, count), -3.0F);
      fill(on.stream, on(filled, count), 7.0F);
    });
    sum.expect_parity("add", 0);
    b.expect_parity("scale", 0);
    filled.expect_parity("fill", 0);
    total.expect_parity("add_sum", 1e-11);
    squares.expect_parity("add_sum_of_squares", 1e-11);
  }
}

// Sums over many tokens, twice, to the bit.
TEST_F(DenseCuda, ResultsRepeatBitForBit) {
  constexpr int64_t kTokens = 700;
  constexpr int64_t kWidth = 24;
  const AttentionShape shape = {7, 100, 3};
  std::vector<std::vector<float>> runs;
  for (int run = 0; run < 2; ++run) {
    Twin<> x(cuda(), normals("x", kTokens * kWidth));
    Twin<> qkv(cuda(), normals("qkv", kTokens * 3 * kWidth));
    Twin<> weight(cuda(), normals("weight", 3 * kWidth * kWidth));
    Twin<> logsumexp(cuda(), shape.heads * kTokens);
    Twin<> output(cuda(), kTokens * kWidth);
    Twin<> dqkv(cuda(), kTokens * 3 * kWidth);
    Twin<> dweight(cuda(), Numbers(3 * kWidth * kWidth, 0.0));
    Twin<> dbias(cuda(), Numbers(3 * kWidth, 0.0));
    attention_forward(cuda(), shape, qkv.device(kTokens, 3 * kWidth), {}, output.device(kTokens, kWidth),
                      logsumexp.device(shape.heads, kTokens));
    attention_backward(cuda(), shape, qkv.device(kTokens, 3 * kWidth), output.device(kTokens, kWidth),
                       logsumexp.device(shape.heads, kTokens), x.device(kTokens, kWidth), {},
                       dqkv.device(kTokens, 3 * kWidth));
    linear_backward(cuda(), x.device(kTokens, kWidth), weight.device(3 * kWidth, kWidth),
                    dqkv.device(kTokens, 3 * kWidth), {}, dweight.device(3 * kWidth, kWidth), dbias.device(3 * kWidth));
    std::vector<float> all = dqkv.device_values();
    for (Twin<>* part : {&dweight, &dbias}) {
      const std::vector<float> values = part->device_values();
      all.insert(all.end(), values.begin(), values.end());
    }
    runs.push_back(std::move(all));
  }
  EXPECT_EQ(runs[0], runs[1]);
  for (const float value : runs[0]) ASSERT_TRUE(std::isfinite(value));
}

}  // namespace
}  // namespace pkmesh
