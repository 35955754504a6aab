// SPDX-License-Identifier: Apache-2.0
// `pkmesh generate`: continues prompts token by token. Keys and values of past tokens are cached; when the context is
// full, its later half becomes the new beginning, because positions are learned and end there.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "comm/agree.h"
#include "launcher/commands.h"
#include "launcher/model.h"
#include "launcher/sampling.h"
#include "runtime/log.h"
#include "runtime/random.h"

namespace pkmesh {
namespace {

class Generator {
 public:
  explicit Generator(LoadedModel& loaded) : model_(*loaded.model) {
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

  // Takes in one token; the logits (V) of what follows it.
  std::span<const float> feed(int32_t id) {
    const int64_t context_size = model_.transformer().shape().context;
    if (static_cast<int64_t>(window_.size()) == context_size) {
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

  void clear() { window_.clear(); }

 private:
  Model& model_;
  std::vector<Buffer<float>> memory_;
  std::vector<KeyValueCache> caches_;
  std::vector<int32_t> window_;  // the tokens in the caches
  Buffer<int32_t> staged_;       // host memory, as the next
  Buffer<float> logits_;         // (V)
};

std::string continue_prompt(Communicator& world, const LoadedModel& loaded, Generator& generator,
                            const std::string& prompt, const GenerateArguments& options) {
  generator.clear();
  const Random random(options.seed, prompt);
  std::span<const float> logits = generator.feed(loaded.tokenizer->separator());
  for (const int32_t id : loaded.tokenizer->encode(prompt)) logits = generator.feed(id);
  std::vector<int32_t> ids;
  while (static_cast<int64_t>(ids.size()) < options.tokens) {
    if (!std::ranges::all_of(logits, [](float logit) { return std::isfinite(logit); }))
      throw AgreedError(
          fmt::format("{}: its outputs are not finite: the run had diverged; take an older checkpoint", loaded.path));
    int32_t id = draw_token(logits, options.temperature, options.top_p, random.uniform(ids.size()));
    // All ranks follow rank 0, should their processors round differently.
    world.broadcast(std::span<int32_t>(&id, 1), 0, Purpose::kControl);
    if (id == loaded.tokenizer->separator()) break;
    ids.push_back(id);
    logits = generator.feed(id);
  }
  return loaded.tokenizer->decode(ids);
}

}  // namespace

int generate_command(Communicator& world, const GenerateArguments& options) {
  LoadedModel loaded = load_model(world, options.checkpoint, Reading::kGeneration);
  Generator generator(loaded);
  for (const std::string& prompt : options.prompts) {
    const std::string text = continue_prompt(world, loaded, generator, prompt, options);
    agree(world, [&] {
      if (world.rank() == 0) print_out(fmt::format("{}{}\n\n", prompt, text));
    });
  }
  return 0;
}

}  // namespace pkmesh
