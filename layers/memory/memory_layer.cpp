// SPDX-License-Identifier: Apache-2.0
#include "layers/memory/memory_layer.h"

#include <cmath>

#include "layers/elementwise.h"
#include "layers/memory/select.h"
#include "layers/silu_gate.h"
#include "runtime/range.h"

namespace pkmesh {
namespace {

// As torch.nn.Linear starts: uniform within +- 1 / sqrt(inputs).
Init uniform_for(int64_t inputs) {
  return Init::uniform(1.0F / std::sqrt(static_cast<float>(inputs)));
}

// The shape, if it and the table fit: what a configuration may ask for, io/config_check has seen to.
const MemoryShape& checked(const std::string& name, const MemoryShape& shape, const TableShape& table) {
  PKM_CHECK(1 <= shape.sub_keys && shape.sub_keys <= kMaxSubKeys, "{}: {} sub-keys", name, shape.sub_keys);
  PKM_CHECK(1 <= shape.neighbours && shape.neighbours <= shape.sub_keys, "{}: {} neighbours of {} sub-keys", name,
            shape.neighbours, shape.sub_keys);
  PKM_CHECK(shape.key_width >= 2 && shape.key_width % 2 == 0, "{}: keys of {} have no two halves", name,
            shape.key_width);
  PKM_CHECK(shape.sub_keys * shape.sub_keys == table.slots, "{}: {} sub-keys, but table {} has {} rows", name,
            shape.sub_keys, table.name, table.slots);
  PKM_CHECK(shape.output != MemoryOutput::kPlain || table.width == shape.width, "{}: rows of width {}, outputs of {}",
            name, table.width, shape.width);
  return shape;
}

}  // namespace

MemoryLayer::MemoryLayer(Parameters& parameters, const std::string& name, const MemoryShape& shape, ValueTable& table)
    : name_(name),
      shape_(checked(name, shape, table.shape())),
      table_(table),
      exchange_(shape.exchange),
      query_(parameters, name + ".query", shape.width, shape.heads * shape.key_width, uniform_for(shape.width),
             uniform_for(shape.width)) {
  const int64_t half = shape.key_width / 2;
  if (shape.query_norm == QueryNorm::kBatchNorm)
    batch_norm_.emplace(parameters, name + ".query_norm", shape.heads * shape.key_width);
  if (shape.query_norm == QueryNorm::kLayerNorm) layer_norm_.emplace(parameters, name + ".query_norm", half);
  keys_ = parameters.add<4>(name + ".keys", {shape.heads, 2, shape.sub_keys, half}, uniform_for(half));
  if (shape.output == MemoryOutput::kSwilu) {
    const int64_t width = table.shape().width;
    gate_.emplace(parameters, name + ".gate", shape.width, width, uniform_for(shape.width), std::nullopt);
    output_.emplace(parameters, name + ".out", width, shape.width, uniform_for(width), std::nullopt);
  }
}

View<float, 3> MemoryLayer::by_head(Matrix<float> queries) const {
  return queries.reshape(queries.size(0), shape_.heads, shape_.key_width);
}

Matrix<float> MemoryLayer::by_half(Matrix<float> queries) const {
  return queries.reshape(queries.size(0) * shape_.heads * 2, shape_.key_width / 2);
}

Matrix<float> MemoryLayer::forward(StepContext& context, Matrix<const float> x) {
  const Range range("memory forward");
  const Communicator::Label label(context.world, name_);
  const int64_t tokens = x.size(0);
  check_shape(name_, x, {{"tokens", tokens}, {"width", shape_.width}});
  Arena& arena = context.arena;
  kept_ = {};
  kept_.queries = query_.forward(context, x);
  if (batch_norm_) batch_norm_->forward(context, kept_.queries, kept_.queries);
  if (layer_norm_)
    kept_.queries = layer_norm_->forward(context, by_half(kept_.queries)).reshape(tokens, kept_.queries.size(1));

  kept_.slots = arena.take<int32_t>(tokens, shape_.heads * shape_.neighbours);
  kept_.weights = arena.take<float>(tokens, shape_.heads * shape_.neighbours);
  select_forward(context.stream, by_head(kept_.queries), keys_.value(), kept_.slots, kept_.weights);
  table_.mark_best(context.stream, kept_.slots, shape_.neighbours);
  kept_.sum = arena.take<float>(tokens, table_.shape().width);
  const RouteTag tag(name_, context.draw, table_.shape().slots);
  exchange_.forward(context, table_, tag, kept_.slots, kept_.weights, kept_.sum);
  if (shape_.output == MemoryOutput::kPlain) return kept_.sum;

  kept_.gate = gate_->forward(context, x);
  const auto gated = arena.take<float>(tokens, table_.shape().width);
  silu_gate_forward(context.stream, kept_.sum, kept_.gate, gated);
  return output_->forward(context, gated);
}

void MemoryLayer::backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx) {
  const Range range("memory backward");
  const Communicator::Label label(context.world, name_);
  const int64_t tokens = kept_.queries.size(0);
  const int64_t width = table_.shape().width;
  Arena& arena = context.arena;
  const ArenaScope scope(arena);

  Matrix<const float> dsum = dy;
  Matrix<float> dgate;
  if (shape_.output == MemoryOutput::kSwilu) {
    dgate = arena.take<float>(tokens, width);
    const auto dgated = arena.take<float>(tokens, width);
    output_->backward(context, dy, dgated);
    silu_gate_backward(context.stream, kept_.sum, kept_.gate, dgated, dgated, dgate);
    dsum = dgated;
  }
  const auto dweights = arena.take<float>(tokens, shape_.heads * shape_.neighbours);
  exchange_.backward(context, table_, dsum, dweights);
  const auto dqueries = arena.take<float>(tokens, shape_.heads * shape_.key_width);
  const auto scratch = arena.take<SubKeyGradient>(tokens, shape_.heads, 2, shape_.neighbours);
  select_backward(context.stream, by_head(kept_.queries), keys_.value(), kept_.slots, kept_.weights, dweights, scratch,
                  by_head(dqueries), keys_.gradient());
  if (batch_norm_) batch_norm_->backward(context, dqueries, dqueries);
  if (layer_norm_) layer_norm_->backward(context, by_half(dqueries), {}, by_half(dqueries));
  // Batch norm takes away what the bias adds. Its gradient is 0 but for rounding, which differs with the ranks, and
  // which Adam would make steps of: the running mean would follow them, and evaluations would differ.
  query_.backward(context, dqueries, dx, /*trains_bias=*/!batch_norm_);
  if (shape_.output != MemoryOutput::kSwilu) return;
  const auto dx_gate = arena.take<float>(tokens, shape_.width);
  gate_->backward(context, dgate, dx_gate);
  add(context.stream, dx.reshape(dx.count()), dx_gate.reshape(dx_gate.count()), dx.reshape(dx.count()));
}

}  // namespace pkmesh
