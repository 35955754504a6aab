// SPDX-License-Identifier: Apache-2.0
#include "launcher/generator.h"

namespace pkmesh {

Generator::Generator(Model& model) : model_(model) {
  const TransformerShape& shape = model_.transformer().shape();
  const Device device = model_.stream().device();
  const int64_t size = shape.context * shape.block.width;
  staged_ = Buffer<int32_t>(device, 2, MemoryKind::kHost);
  logits_ = Buffer<float>(device, shape.vocabulary, MemoryKind::kHost);
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    memory_.emplace_back(device, 2 * size);
    float* keys = memory_.back().data();
    caches_.push_back({View<float, 3>(keys, 1, shape.context, shape.block.width),
                       View<float, 3>(keys + size, 1, shape.context, shape.block.width)});
  }
}

std::span<const float> Generator::feed(int32_t id) {
  const int64_t context_size = model_.transformer().shape().context;
  if (std::ssize(window_) == context_size) {
    const std::vector<int32_t> kept(window_.begin() + (context_size + 1) / 2, window_.end());
    window_.clear();
    for (const int32_t former : kept) feed(former);
  }
  window_.push_back(id);
  StepContext context = model_.begin(/*training=*/false);
  const auto token = context.arena.take<int32_t>(2);  // its id, its position
  staged_.data()[0] = id;
  staged_.data()[1] = static_cast<int32_t>(window_.size() - 1);
  copy(context.stream, staged_.span(), token.flat());
  const auto logits = model_.transformer().decode(context, token.rows(0, 1), token.rows(1, 2), caches_);
  copy(context.stream, logits.flat(), logits_.span());
  context.stream.synchronize();
  return logits_.span();
}

}  // namespace pkmesh
