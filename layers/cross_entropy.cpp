// SPDX-License-Identifier: Apache-2.0
#include "layers/cross_entropy.h"

#include "runtime/range.h"

namespace pkmesh {
namespace {

void check_inputs(Matrix<const float> x, Matrix<const float> embedding, Vector<const int32_t> targets,
                  Matrix<float> scratch, Vector<float> losses) {
  check_shape("cross_entropy: x", x, {{"tokens", targets.size(0)}, {"width", embedding.size(1)}});
  check_shape("cross_entropy: losses", losses, {{"tokens", targets.size(0)}});
  check_shape("cross_entropy: scratch", scratch, {{"chunk", scratch.size(0)}, {"vocabulary", embedding.size(0)}});
  PKM_CHECK(scratch.size(0) >= 1 || x.size(0) == 0, "cross_entropy: the scratch holds no row");
}

}  // namespace

void cross_entropy_forward(Stream& stream, Matrix<const float> x, Matrix<const float> embedding,
                           Vector<const int32_t> targets, Matrix<float> scratch, Vector<float> losses) {
  check_inputs(x, embedding, targets, scratch, losses);
  Range range("cross_entropy_forward");
  PKM_DISPATCH(stream, cross_entropy_forward, x, embedding, targets, scratch, losses);
}

void cross_entropy_train(Stream& stream, Matrix<const float> x, Matrix<const float> embedding,
                         Vector<const int32_t> targets, float gradient_scale, Matrix<float> scratch,
                         Vector<float> losses, Matrix<float> dx, Matrix<float> dembedding) {
  check_inputs(x, embedding, targets, scratch, losses);
  check_shape("cross_entropy: dx", dx, {{"tokens", x.size(0)}, {"width", x.size(1)}});
  check_shape("cross_entropy: dembedding", dembedding,
              {{"vocabulary", embedding.size(0)}, {"width", embedding.size(1)}});
  Range range("cross_entropy_train");
  PKM_DISPATCH(stream, cross_entropy_train, x, embedding, targets, gradient_scale, scratch, losses, dx, dembedding);
}

}  // namespace pkmesh
