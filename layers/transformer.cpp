// SPDX-License-Identifier: Apache-2.0
#include "layers/transformer.h"

#include <fmt/format.h>

#include "layers/cross_entropy.h"
#include "layers/embedding.h"
#include "layers/gemm.h"
#include "runtime/range.h"

namespace pkmesh {
namespace {

Vector<const int32_t> flat(Matrix<const int32_t> ids) {
  return ids.reshape(ids.count());
}

}  // namespace

Transformer::Transformer(const TransformerShape& shape, Parameters& parameters, const Communicator& world,
                         Device device, uint64_t seed)
    : shape_(shape) {
  const int64_t width = shape.block.width;
  // Small embeddings, so that the tied output layer starts near uniform predictions.
  const Init embedding = Init::normal(1.0F / std::sqrt(static_cast<float>(width)));
  tokens_ = parameters.add<2>("tokens.weight", {shape.vocabulary, width}, embedding);
  positions_ = parameters.add<2>("positions.weight", {shape.context, width}, embedding);
  if (shape.embedding_norm) embedding_norm_ = std::make_unique<LayerNorm>(parameters, "embedding_norm", width);
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    const std::string name = fmt::format("layers.{}", layer);
    const auto make_memory = [&](bool after) -> std::unique_ptr<MemoryLayer> {
      for (const MemorySite& site : shape_.memories) {
        if (site.layer != layer || site.after != after) continue;
        const std::string memory = name + (after ? ".memory_after" : ".memory");
        return std::make_unique<MemoryLayer>(parameters, memory, site.shape, table(site, world, device, seed));
      }
      return nullptr;
    };
    forward_names_.push_back(fmt::format("layer {} forward", layer));
    backward_names_.push_back(fmt::format("layer {} backward", layer));
    blocks_.push_back(std::make_unique<Block>(parameters, name, shape.block, make_memory));
  }
  if (shape.block.pre_norm) final_norm_ = std::make_unique<LayerNorm>(parameters, "final_norm", width);
  parameters_ = parameters.count();
}

ValueTable& Transformer::table(const MemorySite& site, const Communicator& world, Device device, uint64_t seed) {
  for (const auto& table : tables_)
    if (table->shape().name == site.table.name) return *table;
  tables_.push_back(std::make_unique<ValueTable>(site.table, world, device, seed));
  return *tables_.back();
}

Matrix<float> Transformer::embed(StepContext& context, Matrix<const int32_t> inputs, Vector<const int32_t> positions) {
  Matrix<float> x = context.arena.take<float>(inputs.count(), shape_.block.width);
  const auto& apart = context.input_rows;
  context.await({apart ? token_parameters() : 0, blocks_.front()->parameters().begin});
  embedding_forward(context.stream, apart ? apart->places : flat(inputs), positions,
                    apart ? apart->values : tokens_.value(), positions_.value(), x);
  if (embedding_norm_ != nullptr) x = embedding_norm_->forward(context, x);
  if (context.training && shape_.block.dropout > 0) dropout(context.stream, x, embedding_mask(context), x);
  return x;
}

Dropout Transformer::embedding_mask(const StepContext& context) const {
  return {Random(context.seed, "embedding", context.draw), shape_.block.dropout,
          context.first_token * shape_.block.width};
}

Vector<const int32_t> Transformer::count_positions(StepContext& context, Matrix<const int32_t> inputs) {
  const auto positions = context.arena.take<int32_t>(inputs.count());
  PKM_DISPATCH(context.stream, count_positions, inputs.size(1), positions);
  return positions;
}

Matrix<float> Transformer::features(StepContext& context, Matrix<const int32_t> inputs,
                                    Vector<const int32_t> positions) {
  PKM_CHECK(inputs.size(1) <= shape_.context, "sequences of {} tokens in a context of {}", inputs.size(1),
            shape_.context);
  context.sequence_length = inputs.size(1);
  Matrix<float> x = embed(context, inputs, positions);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    Range range(forward_names_[layer]);
    context.await(blocks_[layer]->parameters());
    if (context.training) {
      x = blocks_[layer]->forward(context, x);
      continue;
    }
    ArenaScope scope(context.arena);  // nothing is kept: a block's memory is the next one's
    copy(context.stream, blocks_[layer]->forward(context, x).flat(), x.flat());
  }
  context.await({0, parameters_});
  return final_norm_ != nullptr ? final_norm_->forward(context, x) : x;
}

Matrix<float> Transformer::logits_scratch(StepContext& context, int64_t tokens) const {
  const int64_t chunk = logits_chunk(context.stream.device().kind);
  return context.arena.take<float>(std::clamp<int64_t>(tokens, 1, chunk), shape_.vocabulary);
}

Vector<float> Transformer::losses(StepContext& context, Matrix<const int32_t> inputs, Matrix<const int32_t> targets) {
  const Matrix<float> x = features(context, inputs, count_positions(context, inputs));
  auto losses = context.arena.take<float>(targets.count());
  ArenaScope scope(context.arena);
  cross_entropy_forward(context.stream, x, tokens_.value(), flat(targets), logits_scratch(context, x.size(0)), losses);
  return losses;
}

Vector<float> Transformer::losses_and_gradients(StepContext& context, Matrix<const int32_t> inputs,
                                                Matrix<const int32_t> targets, float gradient_scale) {
  const auto positions = count_positions(context, inputs);
  const Matrix<float> x = features(context, inputs, positions);
  auto losses = context.arena.take<float>(targets.count());
  auto gradient = context.arena.take<float>(x.size(0), x.size(1));
  {
    ArenaScope scope(context.arena);
    cross_entropy_train(context.stream, x, tokens_.value(), flat(targets), gradient_scale,
                        logits_scratch(context, x.size(0)), losses, gradient, tokens_.gradient());
  }
  const int64_t apart = context.input_rows ? token_parameters() : 0;
  if (apart > 0) context.report_final({0, apart});
  if (final_norm_ != nullptr) final_norm_->backward(context, gradient, {}, gradient);
  context.report_final({blocks_.back()->parameters().end, parameters_});
  for (size_t layer = blocks_.size(); layer-- > 0;) {
    Range range(backward_names_[layer]);
    blocks_[layer]->backward(context, gradient);
  }
  if (shape_.block.dropout > 0) dropout(context.stream, gradient, embedding_mask(context), gradient);
  if (embedding_norm_ != nullptr) embedding_norm_->backward(context, gradient, {}, gradient);
  const auto& rows = context.input_rows;
  embedding_backward(context.stream, rows ? rows->places : flat(inputs), positions, gradient,
                     rows ? rows->gradients : tokens_.gradient(), positions_.gradient());
  context.report_final({apart, blocks_.front()->parameters().begin});
  return losses;
}

Matrix<float> Transformer::decode(StepContext& context, Vector<const int32_t> ids, Vector<const int32_t> positions,
                                  std::vector<KeyValueCache>& caches) {
  PKM_CHECK(caches.size() == blocks_.size(), "{} caches for {} blocks", caches.size(), blocks_.size());
  context.sequence_length = 1;
  Matrix<float> x = embed(context, ids.reshape(ids.count(), 1), positions);
  for (size_t layer = 0; layer < blocks_.size(); ++layer)
    x = blocks_[layer]->decode(context, x, positions, caches[layer]);
  if (final_norm_ != nullptr) x = final_norm_->forward(context, x);
  auto logits = context.arena.take<float>(ids.count(), shape_.vocabulary);
  gemm(context.stream, Transpose::kNo, Transpose::kYes, 1.0F, x, tokens_.value(), 0.0F, logits);
  return logits;
}

}  // namespace pkmesh
