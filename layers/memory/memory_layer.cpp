// SPDX-License-Identifier: Apache-2.0
#include "layers/memory/memory_layer.h"

#include <cmath>

#include "layers/elementwise.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/memory/select.h"
#include "layers/silu_gate.h"
#include "runtime/range.h"

namespace pkmesh {
namespace {

constexpr float kLayerNormEpsilon = 1e-5F;

// As torch.nn.Linear starts: uniform within +- 1 / sqrt(inputs).
Init uniform_for(int64_t inputs) {
  return Init::uniform(1.0F / std::sqrt(static_cast<float>(inputs)));
}

void check_fit(const std::string& name, const MemoryShape& shape, const TableShape& table) {
  if (shape.sub_keys < 1 || shape.sub_keys > kMaxSubKeys)
    user_error("{}: {} sub-keys; sub_keys must be from 1 to {}", name, shape.sub_keys, kMaxSubKeys);
  if (shape.neighbours < 1 || shape.neighbours > shape.sub_keys)
    user_error("{}: {} neighbours of {} sub-keys; neighbours must be from 1 to sub_keys", name, shape.neighbours,
               shape.sub_keys);
  if (shape.key_width < 2 || shape.key_width % 2 != 0)
    user_error("{}: key_width {} has no two halves; make it even", name, shape.key_width);
  if (shape.sub_keys * shape.sub_keys != table.slots)
    user_error("{}: {} sub-keys address {} rows, but table {} has {}; layers that share a table need equal sub_keys",
               name, shape.sub_keys, shape.sub_keys * shape.sub_keys, table.name, table.slots);
  if (shape.output == MemoryOutput::kPlain && table.width != shape.width)
    user_error("{}: rows of width {} in a model of width {}; set value_width: 0, or output: SWILU", name, table.width,
               shape.width);
}

}  // namespace

MemoryLayer::MemoryLayer(Parameters& parameters, const std::string& name, const MemoryShape& shape, ValueTable& table)
    : name_(name), shape_(shape), table_(table), exchange_(make_exchange(shape.exchange)) {
  check_fit(name, shape, table.shape());
  const int64_t queries = shape.heads * shape.key_width;
  const int64_t half = shape.key_width / 2;
  query_weight_ = parameters.add<2>(name + ".query.weight", {queries, shape.width}, uniform_for(shape.width));
  query_bias_ = parameters.add<1>(name + ".query.bias", {queries}, uniform_for(shape.width));
  if (shape.query_norm == QueryNorm::kBatchNorm) batch_norm_.emplace(parameters, name + ".query_norm", queries);
  if (shape.query_norm == QueryNorm::kLayerNorm) {
    norm_weight_ = parameters.add<1>(name + ".query_norm.weight", {half}, Init::constant(1.0F));
    norm_bias_ = parameters.add<1>(name + ".query_norm.bias", {half}, Init::constant(0.0F));
  }
  keys_ = parameters.add<4>(name + ".keys", {shape.heads, 2, shape.sub_keys, half}, uniform_for(half));
  if (shape.output == MemoryOutput::kSwilu) {
    const int64_t width = table.shape().width;
    gate_weight_ = parameters.add<2>(name + ".gate.weight", {width, shape.width}, uniform_for(shape.width));
    output_weight_ = parameters.add<2>(name + ".out.weight", {shape.width, width}, uniform_for(width));
  }
}

View<float, 3> MemoryLayer::by_head(Matrix<float> queries) const {
  return queries.reshape(queries.size(0), shape_.heads, shape_.key_width);
}

Matrix<float> MemoryLayer::by_half(Matrix<float> queries) const {
  return queries.reshape(queries.size(0) * shape_.heads * 2, shape_.key_width / 2);
}

void MemoryLayer::normalise_queries(StepContext& context) {
  if (batch_norm_) batch_norm_->forward(context, kept_.queries, kept_.queries);
  if (shape_.query_norm != QueryNorm::kLayerNorm) return;
  kept_.raw_queries = kept_.queries;
  kept_.queries = context.arena.take<float>(kept_.queries.size(0), kept_.queries.size(1));
  const int64_t halves = by_half(kept_.queries).size(0);
  kept_.mean = context.arena.take<float>(halves);
  kept_.rstd = context.arena.take<float>(halves);
  layer_norm_forward(context.stream, by_half(kept_.raw_queries), norm_weight_.value(), norm_bias_.value(),
                     kLayerNormEpsilon, by_half(kept_.queries), kept_.mean, kept_.rstd);
}

Matrix<float> MemoryLayer::forward(StepContext& context, Matrix<const float> x) {
  const Range range("memory forward");
  const Communicator::Label label(context.world, name_);
  const int64_t tokens = x.size(0);
  check_shape(name_, x, {{"tokens", tokens}, {"width", shape_.width}});
  Arena& arena = context.arena;
  kept_ = {};
  kept_.x = x;
  kept_.queries = arena.take<float>(tokens, shape_.heads * shape_.key_width);
  linear_forward(context.stream, x, query_weight_.value(), query_bias_.value(), kept_.queries);
  normalise_queries(context);

  kept_.slots = arena.take<int32_t>(tokens, shape_.heads * shape_.neighbours);
  kept_.weights = arena.take<float>(tokens, shape_.heads * shape_.neighbours);
  select_forward(context.stream, by_head(kept_.queries), keys_.value(), kept_.slots, kept_.weights);
  table_.mark_best(context.stream, kept_.slots, shape_.neighbours);
  kept_.sum = arena.take<float>(tokens, table_.shape().width);
  const RouteTag tag(name_, context.draw, table_.shape().slots);
  exchange_->forward(context, table_, tag, kept_.slots, kept_.weights, kept_.sum);
  if (shape_.output == MemoryOutput::kPlain) return kept_.sum;

  kept_.gate = arena.take<float>(tokens, table_.shape().width);
  linear_forward(context.stream, x, gate_weight_.value(), {}, kept_.gate);
  kept_.gated = arena.take<float>(tokens, table_.shape().width);
  silu_gate_forward(context.stream, kept_.sum, kept_.gate, kept_.gated);
  const auto out = arena.take<float>(tokens, shape_.width);
  linear_forward(context.stream, kept_.gated, output_weight_.value(), {}, out);
  return out;
}

void MemoryLayer::query_norm_backward(StepContext& context, Matrix<float> dqueries) {
  if (batch_norm_) batch_norm_->backward(context, dqueries, dqueries);
  if (shape_.query_norm != QueryNorm::kLayerNorm) return;
  layer_norm_backward(context.stream, by_half(kept_.raw_queries), norm_weight_.value(), kept_.mean, kept_.rstd,
                      by_half(dqueries), {}, by_half(dqueries), norm_weight_.gradient(), norm_bias_.gradient());
}

void MemoryLayer::backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx) {
  const Range range("memory backward");
  const Communicator::Label label(context.world, name_);
  const int64_t tokens = kept_.x.size(0);
  const int64_t width = table_.shape().width;
  Arena& arena = context.arena;
  const ArenaScope scope(arena);

  Matrix<const float> dsum = dy;
  Matrix<float> dgate;
  if (shape_.output == MemoryOutput::kSwilu) {
    dgate = arena.take<float>(tokens, width);
    const auto dgated = arena.take<float>(tokens, width);
    linear_backward(context.stream, kept_.gated, output_weight_.value(), dy, dgated, output_weight_.gradient(), {});
    silu_gate_backward(context.stream, kept_.sum, kept_.gate, dgated, dgated, dgate);
    dsum = dgated;
  }
  const auto dweights = arena.take<float>(tokens, shape_.heads * shape_.neighbours);
  exchange_->backward(context, table_, dsum, dweights);
  const auto dqueries = arena.take<float>(tokens, shape_.heads * shape_.key_width);
  const auto scratch = arena.take<SubKeyGradient>(tokens, shape_.heads, 2, shape_.neighbours);
  select_backward(context.stream, by_head(kept_.queries), keys_.value(), kept_.slots, kept_.weights, dweights, scratch,
                  by_head(dqueries), keys_.gradient());
  query_norm_backward(context, dqueries);
  linear_backward(context.stream, kept_.x, query_weight_.value(), dqueries, dx, query_weight_.gradient(),
                  query_bias_.gradient());
  if (shape_.output != MemoryOutput::kSwilu) return;
  const auto dx_gate = arena.take<float>(tokens, shape_.width);
  linear_backward(context.stream, kept_.x, gate_weight_.value(), dgate, dx_gate, gate_weight_.gradient(), {});
  add(context.stream, dx.reshape(dx.count()), dx_gate.reshape(dx_gate.count()), dx.reshape(dx.count()));
}

}  // namespace pkmesh
