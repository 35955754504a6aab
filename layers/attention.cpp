// SPDX-License-Identifier: Apache-2.0
#include "layers/attention.h"

#include "runtime/range.h"

namespace pkmesh {

namespace cuda {
[[gnu::weak]] void check_attention_fits(Device gpu, int64_t head_width, bool trains);
}

namespace {

void check_attention(const AttentionShape& shape, Matrix<const float> qkv, Matrix<const float> output,
                     Matrix<const float> logsumexp, const Dropout& mask) {
  const int64_t width = output.size(1);
  PKM_CHECK(shape.heads >= 1 && width % shape.heads == 0, "attention: {} heads do not divide the width {}", shape.heads,
            width);
  PKM_CHECK(mask.probability >= 0.0F && mask.probability < 1.0F, "attention: dropout {} is not in [0, 1)",
            mask.probability);
  check_shape("attention: qkv", qkv, {{"tokens", shape.tokens()}, {"3 * width", 3 * width}});
  check_shape("attention: output", output, {{"tokens", shape.tokens()}, {"width", width}});
  check_shape("attention: logsumexp", logsumexp, {{"heads", shape.heads}, {"tokens", shape.tokens()}});
}

}  // namespace

void check_attention_fits(Device gpu, int64_t head_width, bool trains) {
  if (cuda::check_attention_fits != nullptr) cuda::check_attention_fits(gpu, head_width, trains);
}

void attention_forward(Stream& stream, const AttentionShape& shape, Matrix<const float> qkv, const Dropout& mask,
                       Matrix<float> output, Matrix<float> logsumexp) {
  check_attention(shape, qkv, output, logsumexp, mask);
  Range range("attention_forward");
  PKM_DISPATCH(stream, attention_forward, shape, qkv, mask, output, logsumexp);
}

void attention_backward(Stream& stream, const AttentionShape& shape, Matrix<const float> qkv,
                        Matrix<const float> output, Matrix<const float> logsumexp, Matrix<const float> doutput,
                        const Dropout& mask, Matrix<float> dqkv) {
  check_attention(shape, qkv, output, logsumexp, mask);
  check_shape("attention: doutput", doutput, {{"tokens", shape.tokens()}, {"width", output.size(1)}});
  check_shape("attention: dqkv", dqkv, {{"tokens", shape.tokens()}, {"3 * width", 3 * output.size(1)}});
  Range range("attention_backward");
  PKM_DISPATCH(stream, attention_backward, shape, qkv, output, logsumexp, doutput, mask, dqkv);
}

}  // namespace pkmesh
