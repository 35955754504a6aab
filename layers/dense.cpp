// SPDX-License-Identifier: Apache-2.0
#include "layers/dense.h"

#include "layers/layer_norm.h"
#include "layers/linear.h"

namespace pkmesh {
namespace {

constexpr float kNormEpsilon = 1e-5F;

}  // namespace

Linear::Linear(Parameters& parameters, const std::string& name, int64_t in, int64_t out, Init weight,
               std::optional<Init> bias)
    : outputs_(out), weight_(parameters.add<2>(name + ".weight", {out, in}, weight)) {
  if (bias) bias_ = parameters.add<1>(name + ".bias", {out}, *bias);
}

Matrix<float> Linear::forward(StepContext& context, Matrix<const float> x) {
  x_ = x;
  auto y = context.arena.take<float>(x.size(0), outputs_);
  linear_forward(context.stream, x, weight_.value(), bias_ ? bias_->value() : Vector<float>(), y);
  return y;
}

void Linear::backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx, bool trains_bias) {
  linear_backward(context.stream, x_, weight_.value(), dy, dx, weight_.gradient(),
                  bias_ && trains_bias ? bias_->gradient() : Vector<float>());
}

LayerNorm::LayerNorm(Parameters& parameters, const std::string& name, int64_t width)
    : weight_(parameters.add<1>(name + ".weight", {width}, Init::constant(1))),
      bias_(parameters.add<1>(name + ".bias", {width}, Init::constant(0))) {}

Matrix<float> LayerNorm::forward(StepContext& context, Matrix<const float> x) {
  x_ = x;
  mean_ = context.arena.take<float>(x.size(0));
  inverse_deviation_ = context.arena.take<float>(x.size(0));
  auto y = context.arena.take<float>(x.size(0), x.size(1));
  layer_norm_forward(context.stream, x, weight_.value(), bias_.value(), kNormEpsilon, y, mean_, inverse_deviation_);
  return y;
}

Matrix<float> LayerNorm::forward_sum(StepContext& context, Matrix<const float> x, Matrix<float> branch) {
  x_ = branch;
  mean_ = context.arena.take<float>(x.size(0));
  inverse_deviation_ = context.arena.take<float>(x.size(0));
  auto y = context.arena.take<float>(x.size(0), x.size(1));
  residual_layer_norm_forward(context.stream, x, branch, weight_.value(), bias_.value(), kNormEpsilon, branch, y, mean_,
                              inverse_deviation_);
  return y;
}

void LayerNorm::backward(StepContext& context, Matrix<const float> dy, Matrix<const float> skip,
                         Matrix<float> gradient) {
  layer_norm_backward(context.stream, x_, weight_.value(), mean_, inverse_deviation_, dy, skip, gradient,
                      weight_.gradient(), bias_.gradient());
}

}  // namespace pkmesh
