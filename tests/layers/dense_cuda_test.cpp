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
#include "runtime/bf16.h"
#include "runtime/fp16.h"
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
  Twin<> tensor(gpu(), numbers);
  tensor.expect_parity("copy", 0);
}

std::vector<Math> maths_of(const Stream& gpu) {
  if (has_bf16(gpu.device())) return {Math::kFp32, Math::kBf16, Math::kFp16};
  return {Math::kFp32, Math::kFp16};  // before Ampere
}

Numbers rounded(Math math, Numbers numbers) {
  for (double& x : numbers) {
    const auto value = static_cast<float>(x);
    if (math == Math::kBf16) x = static_cast<float>(bf16(value));
    if (math == Math::kFp16) x = static_cast<float>(fp16(value));
  }
  return numbers;
}

// An operand that the GPU rounds itself; the CPU, which computes in fp32, is given the rounded numbers.
class Operand {
 public:
  Operand(Stream& gpu, Math math, const Numbers& numbers, int64_t guard = Twin<>::kOdd)
      : exact_(gpu, numbers, guard), rounded_(gpu, rounded(math, numbers), guard) {}
  template <class Side>
  Matrix<const float> operator()(const Side& on, int64_t rows, int64_t columns) {
    return on(on.stream.device().kind == DeviceKind::kCpu ? rounded_ : exact_, rows, columns);
  }

 private:
  Twin<> exact_;
  Twin<> rounded_;
};
// What the stream of either side is set to for that.
MathScope rounding(Stream& stream, Math math) {
  return MathScope(stream, stream.device().kind == DeviceKind::kCpu ? Math::kFp32 : math);
}

TEST_F(DenseCuda, GemmRoundsItsOperandsToNearest) {
  for (const Math math : maths_of(gpu()))
    for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
             {1, 1, 1}, {3, 5, 7}, {65, 33, 70}, {64, 128, 96}, {0, 4, 3}, {4, 0, 3}, {4, 3, 0}})
      for (int flips = 0; flips < 4; ++flips) {
        const auto transpose_a = (flips & 1) != 0 ? Transpose::kYes : Transpose::kNo;
        const auto transpose_b = (flips & 2) != 0 ? Transpose::kYes : Transpose::kNo;
        const int64_t guard = m == 64 ? Twin<>::kAligned : Twin<>::kOdd;  // 64 x 128 x 96: whole packs of eight
        Operand a(gpu(), math, normals("a", m * k), guard);
        Operand b(gpu(), math, normals("b", k * n), guard);
        Twin<> added(gpu(), normals("c", m * n));
        Twin<> written(gpu(), m * n);  // from NaN
        on_both([&](const Side& on) {
          const MathScope scope = rounding(on.stream, math);
          const auto left = transpose_a == Transpose::kYes ? a(on, k, m) : a(on, m, k);
          const auto right = transpose_b == Transpose::kYes ? b(on, n, k) : b(on, k, n);
          gemm(on.stream, transpose_a, transpose_b, 0.5F, left, right, 2.0F, on(added, m, n));
          gemm(on.stream, transpose_a, transpose_b, 1.0F, left, right, 0.0F, on(written, m, n));
        });
        added.expect_parity("added", 1e-5);
        written.expect_parity("written", 1e-5);
      }
}

TEST_F(DenseCuda, GemmOfSlices) {
  Twin<> a(gpu(), normals("a", 4 * 10));
  Twin<> b(gpu(), normals("b", 3 * 2));
  Twin<> c(gpu(), normals("c", 4 * 5));
  on_both([&](const Side& on) {
    float* const left = on(a, 4, 10).data();
    float* const out = on(c, 4, 5).data();
    gemm(on.stream, Transpose::kNo, Transpose::kNo, 1.0F, MatrixSlice(left + 6, 4, 3, 10), on(b, 3, 2), 0.5F,
         MatrixSlice(out + 1, 4, 2, 5));
    gemm(on.stream, Transpose::kNo, Transpose::kNo, 1.0F, MatrixSlice(left + 2, 4, 0, 10), on(b, 3, 2).rows(0, 0), 3.0F,
         MatrixSlice(out + 3, 4, 2, 5));
  });
  c.expect_parity("c", 1e-6);
}

TEST_F(DenseCuda, LinearRoundsEachOperandOnce) {
  for (const Math math : maths_of(gpu()))
    for (const auto& [tokens, width] : kSizes) {
      const int64_t outputs = 2 * width + 1;
      Operand x(gpu(), math, normals("x", tokens * width));
      Operand weight(gpu(), math, normals("weight", outputs * width));
      Operand dy(gpu(), math, normals("dy", tokens * outputs));
      Twin<> bias(gpu(), normals("bias", outputs));
      Twin<> y(gpu(), tokens * outputs);
      Twin<> plain(gpu(), tokens * outputs);
      Twin<> dx(gpu(), tokens * width);
      Twin<> dweight(gpu(), normals("dweight", outputs * width));
      Twin<> dbias(gpu(), normals("dbias", outputs));
      on_both([&](const Side& on) {
        const MathScope scope = rounding(on.stream, math);
        const auto in = x(on, tokens, width);
        const auto by = weight(on, outputs, width);
        const Vector<float> sums =
            math == Math::kFp32 ? on(dbias, outputs) : Vector<float>();  // dy itself, not rounded
        linear_forward(on.stream, in, by, on(bias, outputs), on(y, tokens, outputs));
        linear_forward(on.stream, in, by, {}, on(plain, tokens, outputs));
        linear_backward(on.stream, in, by, dy(on, tokens, outputs), on(dx, tokens, width), on(dweight, outputs, width),
                        sums);
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
  Twin<> x(gpu(), Numbers(static_cast<size_t>(kTokens), 1.0));
  Twin<> weight(gpu(), normals("weight", 3));
  Twin<> dy(gpu(), normals("dy", kTokens * 3));
  Twin<> dbias(gpu(), normals("dbias", 3));
  on_both([&](const Side& on) {
    linear_backward(on.stream, on(x, kTokens, 1), on(weight, 3, 1), on(dy, kTokens, 3), {}, {}, on(dbias, 3));
  });
  dbias.expect_parity("dbias", 1e-5);
}

TEST_F(DenseCuda, GeluAndSiluGate) {
  for (const auto& [tokens, width] : kSizes) {
    const int64_t count = tokens * width;
    Twin<> x(gpu(), normals("x", count, 3.0));
    Twin<> gate(gpu(), normals("gate", count, 3.0));
    Twin<> dy(gpu(), normals("dy", count));
    Twin<> gelu(gpu(), count);
    Twin<> gelu_dx(gpu(), count);
    Twin<> gated(gpu(), count);
    Twin<> gated_dy(gpu(), count);
    Twin<> dgate(gpu(), count);
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
    Twin<> a(gpu(), normals("a", count, 2.0));
    Twin<> b(gpu(), normals("b", count));
    Twin<> gamma(gpu(), normals("gamma", width));
    Twin<> beta(gpu(), normals("beta", width));
    Twin<> dy(gpu(), normals("dy", count));
    Twin<> y(gpu(), count);
    Twin<> residual_y(gpu(), count);
    Twin<> sum(gpu(), count);
    Twin<> mean(gpu(), tokens);
    Twin<> rstd(gpu(), tokens);
    Twin<> dx(gpu(), count);
    Twin<> dgamma(gpu(), normals("dgamma", width));
    Twin<> dbeta(gpu(), normals("dbeta", width));
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
      Twin<int32_t> token(gpu(), indices("tokens", tokens, vocabulary));
      Twin<int32_t> position(gpu(), indices("positions", tokens, kContext));
      Twin<> table(gpu(), normals("table", vocabulary * width));
      Twin<> positions(gpu(), normals("position table", kContext * width));
      Twin<> y(gpu(), tokens * width);
      Twin<> dy(gpu(), normals("dy", tokens * width));
      Twin<> dtable(gpu(), normals("dtable", vocabulary * width));
      Twin<> dpositions(gpu(), normals("dpositions", kContext * width));
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
        Twin<> x(gpu(), normals("x", tokens * width));
        Twin<> y(gpu(), tokens * width);
        on_both([&](const Side& on) {
          const auto view = [&](Twin<>& tensor) { return on(tensor, tokens, width); };
          dropout(on.stream, view(x), mask, view(y));
          dropout(on.stream, view(x), mask, view(x));  // in place
        });
        y.expect_parity("dropout", 0);
        x.expect_parity("dropout in place", 0);
      }
}

struct AttentionCase {
  int64_t sequences, context, heads, head_width;
  float dropout;
};

// Attention is computed in fp32 whatever products elsewhere are (docs/gpu.md), so within the tolerances of fp32.
TEST_F(DenseCuda, AttentionForwardAndBackwardKnowNoSixteenBits) {
  // Head widths and contexts around the sizes of the three kinds of tiles.
  for (const AttentionCase& c : std::vector<AttentionCase>{{0, 4, 1, 2, 0},
                                                           {1, 0, 1, 2, 0},
                                                           {1, 1, 1, 1, 0},
                                                           {2, 5, 3, 3, 0.3F},
                                                           {1, 64, 2, 64, 0},
                                                           {2, 65, 1, 20, 0.2F},
                                                           {1, 130, 2, 5, 0.2F},
                                                           {1, 67, 2, 65, 0},
                                                           {2, 33, 1, 128, 0.1F},
                                                           {1, 35, 2, 129, 0},
                                                           {1, 49, 1, 256, 0.1F}})
    for (const Math math : maths_of(gpu())) {
      if (math != Math::kFp32 && c.head_width != 20) continue;
      const AttentionShape shape = {c.sequences, c.context, c.heads};
      const int64_t tokens = shape.tokens();
      const int64_t width = c.heads * c.head_width;
      const Dropout mask = {Random(3, "attention"), c.dropout, 5};
      Twin<> qkv(gpu(), normals("qkv", tokens * 3 * width, 1.5));
      Twin<> doutput(gpu(), normals("doutput", tokens * width));
      Twin<> output(gpu(), tokens * width);
      Twin<> logsumexp(gpu(), c.heads * tokens);
      Twin<> dqkv(gpu(), tokens * 3 * width);
      on_both([&](const Side& on) {
        const MathScope scope = rounding(on.stream, math);
        attention_forward(on.stream, shape, on(qkv, tokens, 3 * width), mask, on(output, tokens, width),
                          on(logsumexp, c.heads, tokens));
        attention_backward(on.stream, shape, on(qkv, tokens, 3 * width), on(output, tokens, width),
                           on(logsumexp, c.heads, tokens), on(doutput, tokens, width), mask,
                           on(dqkv, tokens, 3 * width));
      });
      output.expect_parity("output", 2e-5);
      logsumexp.expect_parity("logsumexp", 5e-6);
      dqkv.expect_parity("dqkv", 1e-4);
    }
}

TEST_F(DenseCuda, AttentionRefusesHeadsThatDoNotFit) {
  Twin<> qkv(gpu(), Numbers(3 * 257, 0.0));
  Twin<> output(gpu(), 257);
  Twin<> logsumexp(gpu(), 1);
  EXPECT_THROW(
      attention_forward(gpu(), {1, 1, 1}, qkv.device(1, 3 * 257), {}, output.device(1, 257), logsumexp.device(1, 1)),
      UserError);
}

TEST_F(DenseCuda, AttentionDecode) {
  constexpr int64_t kCapacity = 40;
  for (const auto& [sequences, context, heads, head_width, unused] : std::vector<AttentionCase>{
           {1, 1, 1, 1, 0}, {2, 5, 3, 3, 0}, {3, 33, 2, 64, 0}, {2, 39, 1, 100, 0}, {1, 7, 2, 256, 0}}) {
    const int64_t width = heads * head_width;
    const int64_t cached = sequences * kCapacity * width;
    Twin<> qkv(gpu(), normals("qkv", (context + 1) * sequences * 3 * width));  // step by step
    Twin<> keys(gpu(), Numbers(static_cast<size_t>(cached), 0.0));
    Twin<> values(gpu(), Numbers(static_cast<size_t>(cached), 0.0));
    Twin<> output(gpu(), sequences * width);
    Numbers places;
    for (int64_t p = 0; p < context; ++p) places.insert(places.end(), sequences, static_cast<double>(p));
    for (int64_t s = 0; s < sequences; ++s) places.push_back(static_cast<double>(std::max<int64_t>(0, context - s)));
    Twin<int32_t> positions(gpu(), places);
    on_both([&](const Side& on) {
      for (int64_t step = 0; step <= context; ++step)
        attention_decode(on.stream, heads, on(qkv, context + 1, sequences, 3 * width)[step],
                         on(positions, context + 1, sequences)[step], on(keys, sequences, kCapacity, width),
                         on(values, sequences, kCapacity, width), on(output, sequences, width));
    });
    keys.expect_parity("keys", 0);
    values.expect_parity("values", 0);
    output.expect_parity("output", 1e-5);
  }
}

TEST_F(DenseCuda, CrossEntropy) {
  constexpr int64_t kWidth = 9;
  for (const Math math : maths_of(gpu()))
    for (const auto& [tokens, vocabulary, chunk] :
         std::vector<std::array<int64_t, 3>>{{0, 5, 2}, {1, 1, 1}, {7, 5, 3}, {20, 700, 8}, {33, 1500, 64}}) {
      const Numbers targets = indices("targets", tokens, vocabulary);
      Twin<int32_t> target(gpu(), targets);
      Operand x(gpu(), math, normals("x", tokens * kWidth));
      Operand embedding(gpu(), math, normals("embedding", vocabulary * kWidth));
      Twin<> scratch(gpu(), chunk * vocabulary);
      Twin<> losses(gpu(), tokens);
      Twin<> trained(gpu(), tokens);
      Twin<> dx(gpu(), tokens * kWidth);
      Twin<> dembedding(gpu(), normals("dembedding", vocabulary * kWidth));
      on_both([&](const Side& on) {
        const MathScope scope = rounding(on.stream, math);
        const auto in = x(on, tokens, kWidth);
        const auto table = embedding(on, vocabulary, kWidth);
        cross_entropy_forward(on.stream, in, table, on(target, tokens), on(scratch, chunk, vocabulary),
                              on(losses, tokens));
        cross_entropy_train(on.stream, in, table, on(target, tokens), 0.25F, on(scratch, chunk, vocabulary),
                            on(trained, tokens), on(dx, tokens, kWidth), on(dembedding, vocabulary, kWidth));
      });
      losses.expect_parity("losses", 3e-6);
      trained.expect_parity("losses of training", 3e-6);
      // The CPU does not round the logits' gradients.
      const double tolerance = math == Math::kFp32 ? 1e-5 : math == Math::kBf16 ? 1e-2 : 2e-3;
      dx.expect_parity("dx", tolerance);
      dembedding.expect_parity("dembedding", tolerance);
    }
}

TEST_F(DenseCuda, Elementwise) {
  for (const int64_t count : {0, 1, 31, 4097, 70001}) {
    Twin<> a(gpu(), normals("a", count));
    Twin<> b(gpu(), normals("b", count));
    Twin<> filled(gpu(), count);
    Twin<> sum(gpu(), count);
    Twin<bf16> narrowed(gpu(), count);
    Twin<> widened(gpu(), count);
    Twin<double> total(gpu(), Numbers{2.5});
    Twin<double> squares(gpu(), Numbers{-1.5});
    on_both([&](const Side& on) {
      add(on.stream, on(a, count), on(b, count), on(sum, count));
      add_sum(on.stream, on(a, count), on(total, 1));
      add_sum_of_squares(on.stream, on(a, count), on(squares, 1));
      fill(on.stream, on(filled, count), 7.0F);
      narrow(on.stream, on(a, count), on(narrowed, count));
      widen(on.stream, on(narrowed, count), on(widened, count));
    });
    widened.expect_parity("narrow, widen", 0);
    sum.expect_parity("add", 0);
    filled.expect_parity("fill", 0);
    total.expect_parity("add_sum", 1e-11);
    squares.expect_parity("add_sum_of_squares", 1e-11);
  }
}

TEST_F(DenseCuda, PositionsOfWholeSequences) {
  for (const int64_t length : {1, 7, 256})
    for (const int64_t sequences : {0, 1, 33}) {
      Twin<int32_t> positions(gpu(), sequences * length);
      on_both(
          [&](const Side& on) { PKM_DISPATCH(on.stream, count_positions, length, on(positions, sequences * length)); });
      positions.expect_parity("count_positions", 0);
    }
}

// Sums over many tokens, twice, to the bit.
TEST_F(DenseCuda, ResultsRepeatBitForBit) {
  constexpr int64_t kTokens = 700;
  constexpr int64_t kWidth = 24;
  const AttentionShape shape = {7, 100, 3};
  std::vector<std::vector<float>> runs;
  for (int run = 0; run < 2; ++run) {
    Twin<> x(gpu(), normals("x", kTokens * kWidth));
    Twin<> qkv(gpu(), normals("qkv", kTokens * 3 * kWidth));
    Twin<> weight(gpu(), normals("weight", 3 * kWidth * kWidth));
    Twin<> logsumexp(gpu(), shape.heads * kTokens);
    Twin<> output(gpu(), kTokens * kWidth);
    Twin<> dqkv(gpu(), kTokens * 3 * kWidth);
    Twin<> dweight(gpu(), Numbers(3 * kWidth * kWidth, 0.0));
    Twin<> dbias(gpu(), Numbers(3 * kWidth, 0.0));
    attention_forward(gpu(), shape, qkv.device(kTokens, 3 * kWidth), {}, output.device(kTokens, kWidth),
                      logsumexp.device(shape.heads, kTokens));
    attention_backward(gpu(), shape, qkv.device(kTokens, 3 * kWidth), output.device(kTokens, kWidth),
                       logsumexp.device(shape.heads, kTokens), x.device(kTokens, kWidth), {},
                       dqkv.device(kTokens, 3 * kWidth));
    linear_backward(gpu(), x.device(kTokens, kWidth), weight.device(3 * kWidth, kWidth),
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
