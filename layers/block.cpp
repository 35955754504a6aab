// SPDX-License-Identifier: Apache-2.0
#include "layers/block.h"

#include <cmath>

#include "layers/attention_decode.h"
#include "layers/elementwise.h"
#include "layers/gelu.h"

namespace pkmesh {
namespace {

// Starts as N(0, 1/inputs) with no bias, as the paper's code does for its transformers' linear layers.
Linear linear(Parameters& parameters, const std::string& name, int64_t in, int64_t out) {
  return {parameters, name, in, out, Init::normal(1.0F / std::sqrt(static_cast<float>(in))), Init::constant(0)};
}

Matrix<float> take_like(StepContext& context, Matrix<const float> x) {
  return context.arena.take<float>(x.size(0), x.size(1));
}

// y += x.
void accumulate(StepContext& context, Matrix<const float> x, Matrix<float> y) {
  const int64_t count = x.count();
  add(context.stream, Matrix<const float>(y).reshape(count), x.reshape(count), y.reshape(count));
}

}  // namespace

SelfAttention::SelfAttention(Parameters& parameters, const std::string& name, const BlockShape& shape)
    : shape_(shape),
      name_(name),
      qkv_(linear(parameters, name + ".qkv", shape.width, 3 * shape.width)),
      out_(linear(parameters, name + ".out", shape.width, shape.width)) {}

Dropout SelfAttention::mask(const StepContext& context) const {
  if (!context.training || shape_.attention_dropout == 0) return {};
  const int64_t first_sequence = context.first_token / attention_.context;
  return {Random(context.seed, name_ + ".weights", context.draw), shape_.attention_dropout,
          first_sequence * shape_.heads * attention_.context * attention_.context};
}

Matrix<float> SelfAttention::forward(StepContext& context, Matrix<const float> x) {
  attention_ = {x.size(0) / context.sequence_length, context.sequence_length, shape_.heads};
  packed_ = qkv_.forward(context, x);
  attended_ = take_like(context, x);
  log_sum_exp_ = context.arena.take<float>(shape_.heads, x.size(0));
  attention_forward(context.stream, attention_, packed_, mask(context), attended_, log_sum_exp_);
  return out_.forward(context, attended_);
}

void SelfAttention::backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx) {
  ArenaScope scope(context.arena);
  Matrix<float> dattended = take_like(context, attended_);
  Matrix<float> dpacked = take_like(context, packed_);
  out_.backward(context, dy, dattended);
  attention_backward(context.stream, attention_, packed_, attended_, log_sum_exp_, dattended, mask(context), dpacked);
  qkv_.backward(context, dpacked, dx);
}

Matrix<float> SelfAttention::decode(StepContext& context, Matrix<const float> x, Vector<const int32_t> positions,
                                    KeyValueCache& cache) {
  packed_ = qkv_.forward(context, x);
  attended_ = take_like(context, x);
  attention_decode(context.stream, shape_.heads, packed_, positions, cache.keys, cache.values, attended_);
  return out_.forward(context, attended_);
}

FeedForward::FeedForward(Parameters& parameters, const std::string& name, int64_t width, int64_t inner)
    : in_(linear(parameters, name + ".in", width, inner)), out_(linear(parameters, name + ".out", inner, width)) {}

Matrix<float> FeedForward::forward(StepContext& context, Matrix<const float> x) {
  inner_ = in_.forward(context, x);
  Matrix<float> activated = take_like(context, inner_);
  gelu_forward(context.stream, inner_, activated);
  return out_.forward(context, activated);
}

void FeedForward::backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx) {
  ArenaScope scope(context.arena);
  Matrix<float> dinner = take_like(context, inner_);
  out_.backward(context, dy, dinner);
  gelu_backward(context.stream, inner_, dinner, dinner);
  in_.backward(context, dinner, dx);
}

Block::Block(Parameters& parameters, const std::string& name, const BlockShape& shape, const MakeMemory& make_memory)
    : shape_(shape),
      name_(name),
      parameters_{parameters.count(), 0},
      norm1_(parameters, name + ".norm1", shape.width),
      attention_(parameters, name + ".attention", shape),
      feed_begin_(parameters.count()),
      norm2_(parameters, name + ".norm2", shape.width) {
  replace_ = make_memory(/*after=*/false);
  if (replace_ == nullptr)
    feed_forward_ = std::make_unique<FeedForward>(parameters, name + ".ffn", shape.width, shape.ffn_width);
  after_ = make_memory(/*after=*/true);
  if (after_ != nullptr && shape.pre_norm)
    norm3_ = std::make_unique<LayerNorm>(parameters, name + ".norm3", shape.width);
  parameters_.end = parameters.count();
}

Dropout Block::mask(const StepContext& context, const char* place) const {
  return {Random(context.seed, name_ + place, context.draw), shape_.dropout, context.first_token * shape_.width};
}

void Block::drop(const StepContext& context, const char* place, Matrix<float> x) const {
  if (context.training && shape_.dropout > 0) dropout(context.stream, x, mask(context, place), x);
}

Matrix<float> Block::feed(StepContext& context, Matrix<const float> x) {
  return replace_ != nullptr ? replace_->forward(context, x) : feed_forward_->forward(context, x);
}

void Block::feed_backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx) {
  if (replace_ != nullptr) return replace_->backward(context, dy, dx);
  feed_forward_->backward(context, dy, dx);
}

template <class Attend>
Matrix<float> Block::run(StepContext& context, Matrix<const float> x, const Attend& attend) {
  Matrix<float> y;
  Matrix<float> z;
  if (shape_.pre_norm) {
    y = attend(norm1_.forward(context, x));
    drop(context, ".attention", y);
    accumulate(context, x, y);
    z = feed(context, norm2_.forward(context, y));
    drop(context, ".feed", z);
    accumulate(context, y, z);
  } else {
    Matrix<float> attended = attend(x);
    drop(context, ".attention", attended);
    y = norm1_.forward_sum(context, x, attended);
    Matrix<float> fed = feed(context, y);
    drop(context, ".feed", fed);
    z = norm2_.forward_sum(context, y, fed);
  }
  if (after_ == nullptr) return z;
  Matrix<float> sum = after_->forward(context, norm3_ != nullptr ? norm3_->forward(context, z) : z);
  accumulate(context, z, sum);
  return sum;
}

Matrix<float> Block::forward(StepContext& context, Matrix<const float> x) {
  return run(context, x, [&](Matrix<const float> input) { return attention_.forward(context, input); });
}

Matrix<float> Block::decode(StepContext& context, Matrix<const float> x, Vector<const int32_t> positions,
                            KeyValueCache& cache) {
  return run(context, x,
             [&](Matrix<const float> input) { return attention_.decode(context, input, positions, cache); });
}

void Block::backward(StepContext& context, Matrix<float> gradient) {
  ArenaScope scope(context.arena);
  Matrix<float> branch = take_like(context, gradient);  // gradient of the branch's input
  // The gradient of a branch's output: the residual stream's, through the branch's dropout.
  const auto entering = [&](const char* place) -> Matrix<const float> {
    if (shape_.dropout == 0) return gradient;
    Matrix<float> dropped = take_like(context, gradient);
    dropout(context.stream, gradient, mask(context, place), dropped);
    return dropped;
  };
  if (after_ != nullptr) {
    after_->backward(context, gradient, branch);
    if (norm3_ != nullptr)
      norm3_->backward(context, branch, gradient, gradient);
    else
      accumulate(context, branch, gradient);
  }
  if (shape_.pre_norm) {
    feed_backward(context, entering(".feed"), branch);
    norm2_.backward(context, branch, gradient, gradient);
    context.report_final({feed_begin_, parameters_.end});
    attention_.backward(context, entering(".attention"), branch);
    norm1_.backward(context, branch, gradient, gradient);
  } else {
    norm2_.backward(context, gradient, {}, gradient);
    feed_backward(context, entering(".feed"), branch);
    accumulate(context, branch, gradient);
    context.report_final({feed_begin_, parameters_.end});
    norm1_.backward(context, gradient, {}, gradient);
    attention_.backward(context, entering(".attention"), branch);
    accumulate(context, branch, gradient);
  }
  context.report_final({parameters_.begin, feed_begin_});
}

}  // namespace pkmesh
