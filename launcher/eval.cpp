// SPDX-License-Identifier: Apache-2.0
// `pkmesh eval`: perplexity and memory health of a checkpoint, beside the baselines of the same tokens.
#include <fmt/format.h>

#include <cmath>

#include "comm/agree.h"
#include "io/ngram.h"
#include "launcher/commands.h"
#include "launcher/evaluator.h"

namespace pkmesh {
namespace {

// What counting alone achieves on the same tokens. A folder without training tokens has no baseline to offer.
void print_baselines(const std::string& folder, const Tokens& valid, double perplexity) {
  const Tokens train = Tokens::open(folder, "train", valid.tokenizer_hash());
  if (train.count() < 2) return;
  const NgramBaseline baseline = ngram_baseline(train, valid);
  fmt::print(
      "baselines    unigram {:.2f}, bigram {:.2f} per token; the model's perplexity is {:.2f} times the bigram's\n",
      baseline.unigram_perplexity, baseline.bigram_perplexity, perplexity / baseline.bigram_perplexity);
}

void print_health(const std::string& table, int64_t slots, const MemoryHealth& health) {
  fmt::print("memory       {}: {:.1f}% of {} slots used, {:.1f}% as a head's best\n", table, 100 * health.usage, slots,
             100 * health.top1_usage);
  fmt::print("             KL to uniform {:.3f} weighted, {:.3f} counted; Gini {:.3f} weighted, {:.3f} counted\n",
             health.kl_weighted, health.kl_counted, health.gini_weighted, health.gini_counted);
  fmt::print("             half of the weight on {} slots, 90% on {}, 99% on {}; hottest shard {:.2f}x\n",
             health.slots_50, health.slots_90, health.slots_99, health.hottest_shard);
}

}  // namespace

int eval_command(Communicator& world, const EvalArguments& options) {
  LoadedModel loaded = load_model(world, options.checkpoint);
  std::string folder = options.data;
  std::optional<Tokens> tokens;
  agree(world, [&] {
    if (folder.empty()) folder = loaded.config.data().valid();
    if (folder.empty()) user_error("{}: its run had no validation data; pass --data FOLDER", loaded.path);
    tokens = Tokens::open(folder, "valid", loaded.tokenizer->hash());
  });
  const Evaluation evaluation = evaluate(*loaded.model, *tokens, options.sequences);
  if (world.rank() != 0) return 0;

  fmt::print("checkpoint   {} (step {})\n", loaded.path, loaded.facts.step);
  fmt::print("data         {}: {} tokens in {} sequences of {}\n", folder, evaluation.tokens, evaluation.sequences,
             loaded.config.model().context());
  fmt::print("loss         {:.4f} nats per token\n", evaluation.loss);
  fmt::print("perplexity   {:.2f} per token, {:.1f} per word, {:.3f} bits per byte\n", evaluation.perplexity(),
             evaluation.perplexity_per_word(tokens->text(), tokens->count()),
             evaluation.bits_per_byte(tokens->text(), tokens->count()));
  print_baselines(folder, *tokens, evaluation.perplexity());
  const auto& tables = loaded.model->transformer().tables();
  for (size_t i = 0; i < tables.size(); ++i)
    print_health(tables[i]->shape().name, tables[i]->shape().slots, evaluation.memories[i]);
  return 0;
}

}  // namespace pkmesh
