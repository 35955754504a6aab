// SPDX-License-Identifier: Apache-2.0
// `pkmesh generate`: continues prompts token by token.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "comm/agree.h"
#include "launcher/commands.h"
#include "launcher/generator.h"
#include "launcher/model.h"
#include "launcher/sampling.h"
#include "runtime/log.h"
#include "runtime/random.h"

namespace pkmesh {
namespace {

std::string continue_prompt(Communicator& world, const LoadedModel& loaded, Generator& generator,
                            const std::string& prompt, const GenerateArguments& options) {
  generator.clear();
  const Random random(options.seed, prompt);
  std::span<const float> logits = generator.feed(loaded.tokenizer->separator());
  for (const int32_t id : loaded.tokenizer->encode(prompt)) logits = generator.feed(id);
  std::vector<int32_t> ids;
  while (static_cast<int64_t>(ids.size()) < options.tokens) {
    constexpr int32_t kNone = -1;
    const bool finite = std::ranges::all_of(logits, [](float logit) { return std::isfinite(logit); });
    int32_t id = finite ? draw_token(logits, options.temperature, options.top_p, random.uniform(ids.size())) : kNone;
    // All ranks follow rank 0, should their processors round differently.
    world.broadcast(std::span<int32_t>(&id, 1), 0, Purpose::kControl);
    if (id == kNone)
      throw AgreedError(
          fmt::format("{}: its outputs are not finite: the run had diverged; take an older checkpoint", loaded.path));
    if (id == loaded.tokenizer->separator()) break;
    ids.push_back(id);
    logits = generator.feed(id);
  }
  return loaded.tokenizer->decode(ids);
}

}  // namespace

int generate_command(Communicator& world, const GenerateArguments& options) {
  LoadedModel loaded = load_model(world, options.checkpoint, Reading::kGeneration);
  Generator generator(*loaded.model);
  for (const std::string& prompt : options.prompts) {
    const std::string text = continue_prompt(world, loaded, generator, prompt, options);
    agree(world, [&] {
      if (world.rank() == 0) print_out(fmt::format("{}{}\n\n", prompt, text));
    });
  }
  return 0;
}

}  // namespace pkmesh
