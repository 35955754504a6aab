// SPDX-License-Identifier: Apache-2.0
#include "layers/memory/batch_norm.h"

#include "runtime/range.h"

namespace pkmesh {

void batch_norm_sums(Stream& stream, Matrix<const float> x, Vector<double> sums) {
  check_shape("batch_norm: sums", sums, {{"2 features + 1", 2 * x.size(1) + 1}});
  const Range range("batch_norm sums");
  PKM_DISPATCH(stream, batch_norm_sums, x, sums);
}

void batch_norm_statistics(Stream& stream, Vector<const double> sums, float momentum, Vector<float> mean,
                           Vector<float> variance, Vector<float> running_mean, Vector<float> running_variance) {
  const Extent features = {"features", mean.size(0)};
  check_shape("batch_norm: sums", sums, {{"2 features + 1", 2 * features.size + 1}});
  check_shape("batch_norm: variance", variance, {features});
  check_shape("batch_norm: running mean", running_mean, {features});
  check_shape("batch_norm: running variance", running_variance, {features});
  const Range range("batch_norm statistics");
  PKM_DISPATCH(stream, batch_norm_statistics, sums, momentum, mean, variance, running_mean, running_variance);
}

void batch_norm_normalise(Stream& stream, Matrix<const float> x, Vector<const float> mean, Vector<const float> variance,
                          float epsilon, Vector<const float> weight, Vector<const float> bias, Matrix<float> normal,
                          Matrix<float> y) {
  const Extent tokens = {"tokens", x.size(0)};
  const Extent features = {"features", x.size(1)};
  check_shape("batch_norm: mean", mean, {features});
  check_shape("batch_norm: variance", variance, {features});
  check_shape("batch_norm: weight", weight, {features});
  check_shape("batch_norm: bias", bias, {features});
  if (!normal.empty()) check_shape("batch_norm: normal", normal, {tokens, features});
  check_shape("batch_norm: y", y, {tokens, features});
  const Range range("batch_norm normalise");
  PKM_DISPATCH(stream, batch_norm_normalise, x, mean, variance, epsilon, weight, bias, normal, y);
}

void batch_norm_backward_sums(Stream& stream, Matrix<const float> normal, Matrix<const float> dy, Matrix<double> sums,
                              Vector<float> dweight, Vector<float> dbias) {
  const Extent tokens = {"tokens", normal.size(0)};
  const Extent features = {"features", normal.size(1)};
  check_shape("batch_norm: dy", dy, {tokens, features});
  check_shape("batch_norm: sums", sums, {{"dy, dy * normal", 2}, features});
  check_shape("batch_norm: dweight", dweight, {features});
  check_shape("batch_norm: dbias", dbias, {features});
  const Range range("batch_norm backward sums");
  PKM_DISPATCH(stream, batch_norm_backward_sums, normal, dy, sums, dweight, dbias);
}

void batch_norm_backward_apply(Stream& stream, Matrix<const float> normal, Matrix<const float> dy,
                               Vector<const double> batch_sums, Matrix<const double> sums, Vector<const float> variance,
                               float epsilon, Vector<const float> weight, Matrix<float> dx) {
  const Extent tokens = {"tokens", normal.size(0)};
  const Extent features = {"features", normal.size(1)};
  check_shape("batch_norm: dy", dy, {tokens, features});
  check_shape("batch_norm: batch sums", batch_sums, {{"2 features + 1", 2 * features.size + 1}});
  check_shape("batch_norm: sums", sums, {{"dy, dy * normal", 2}, features});
  check_shape("batch_norm: variance", variance, {features});
  check_shape("batch_norm: weight", weight, {features});
  check_shape("batch_norm: dx", dx, {tokens, features});
  const Range range("batch_norm backward apply");
  PKM_DISPATCH(stream, batch_norm_backward_apply, normal, dy, batch_sums, sums, variance, epsilon, weight, dx);
}

SyncBatchNorm::SyncBatchNorm(Parameters& parameters, const std::string& name, int64_t features)
    : features_(features),
      weight_(parameters.add<1>(name + ".weight", {features}, Init::constant(1.0F))),
      bias_(parameters.add<1>(name + ".bias", {features}, Init::constant(0.0F))),
      running_mean_(parameters.add_state(name + ".running_mean", features, Init::constant(0.0F))),
      running_variance_(parameters.add_state(name + ".running_var", features, Init::constant(1.0F))) {}

void SyncBatchNorm::forward(StepContext& context, Matrix<const float> x, Matrix<float> y) {
  Stream& stream = context.stream;
  if (!context.training) {
    kept_ = {};
    return batch_norm_normalise(stream, x, running_mean_.value(), running_variance_.value(), kEpsilon, weight_.value(),
                                bias_.value(), {}, y);
  }
  Arena& arena = context.arena;
  kept_ = {arena.take<float>(x.size(0), features_), arena.take<double>(2 * features_ + 1),
           arena.take<float>(features_)};
  const ArenaScope scope(arena);
  const auto mean = arena.take<float>(features_);
  batch_norm_sums(stream, x, kept_.sums);
  context.world.all_reduce(kept_.sums.flat(), Reduction::kSum, Purpose::kBatchNorm);
  batch_norm_statistics(stream, kept_.sums, kMomentum, mean, kept_.variance, running_mean_.value(),
                        running_variance_.value());
  batch_norm_normalise(stream, x, mean, kept_.variance, kEpsilon, weight_.value(), bias_.value(), kept_.normal, y);
}

void SyncBatchNorm::backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx) {
  PKM_CHECK(!kept_.sums.empty(), "batch_norm: backward without a forward pass in training");
  const ArenaScope scope(context.arena);
  const auto sums = context.arena.take<double>(2, features_);
  batch_norm_backward_sums(context.stream, kept_.normal, dy, sums, weight_.gradient(), bias_.gradient());
  context.world.all_reduce(sums.flat(), Reduction::kSum, Purpose::kBatchNorm);
  batch_norm_backward_apply(context.stream, kept_.normal, dy, kept_.sums, sums, kept_.variance, kEpsilon,
                            weight_.value(), dx);
  kept_ = {};
}

}  // namespace pkmesh
