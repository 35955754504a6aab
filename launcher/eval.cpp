// SPDX-License-Identifier: Apache-2.0
// `pkmesh eval`: perplexity and memory health of a checkpoint, beside the baselines of the same tokens.
#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <optional>

#include "comm/agree.h"
#include "io/ngram.h"
#include "launcher/commands.h"
#include "launcher/evaluator.h"
#include "runtime/log.h"

namespace pkmesh {
namespace {

// The validation tokens of the run. Tokens of the built-in text stand in the run's own folder.
std::string validation_folder(const LoadedModel& loaded) {
  const std::filesystem::path run = std::filesystem::canonical(loaded.path).parent_path().parent_path();
  const bool built_in = loaded.config.data().source() == config::Data::BUILT_IN;
  std::string folder = built_in ? (run / "tokens").string() : loaded.config.data().valid();
  std::error_code error;
  if (!std::filesystem::exists(folder, error))
    user_error("{}: the validation data of its run, {}, is not there; pass --data FOLDER", loaded.path, folder);
  return folder;
}

// What counting alone achieves on the same tokens; nothing from a folder without training tokens.
std::optional<NgramBaseline> baseline_of(const std::string& folder, const Tokens& valid) {
  if (!Tokens::exist(folder, "train")) return std::nullopt;
  const Tokens train = Tokens::open(folder, "train", valid.tokenizer_hash());
  return train.count() < 2 ? std::nullopt : std::optional(ngram_baseline(train, valid));
}

std::string describe_baseline(const std::string& folder, const std::optional<NgramBaseline>& baseline,
                              double perplexity) {
  if (!baseline) return fmt::format("baselines    none: {} has no training tokens to count\n", folder);
  return fmt::format(
      "baselines    unigram {:.2f}, bigram {:.2f} per token; the model's perplexity is {:.2f} times the bigram's\n",
      baseline->unigram_perplexity, baseline->bigram_perplexity, perplexity / baseline->bigram_perplexity);
}

std::string describe_health(const std::string& table, int64_t slots, const MemoryHealth& health) {
  return fmt::format("memory       {}: {:.1f}% of {} slots used, {:.1f}% as a head's best\n", table, 100 * health.usage,
                     slots, 100 * health.top1_usage) +
         fmt::format(
             "             KL to uniform {:.3f} weighted, {:.3f} counted; Gini {:.3f} weighted, {:.3f} counted\n",
             health.kl_weighted, health.kl_counted, health.gini_weighted, health.gini_counted) +
         fmt::format("             half of the weight on {} slots, 90% on {}, 99% on {}; hottest shard {:.2f}x\n",
                     health.slots_50, health.slots_90, health.slots_99, health.hottest_shard);
}

std::string describe(const LoadedModel& loaded, const std::string& folder, const Tokens& tokens,
                     const Evaluation& evaluation, const std::optional<NgramBaseline>& baseline) {
  std::string text = fmt::format("checkpoint   {} (step {})\n", loaded.path, loaded.facts.step);
  text += fmt::format("data         {}: {} tokens in {} sequences of {}\n", folder, evaluation.tokens,
                      evaluation.sequences, loaded.config.model().context());
  text += fmt::format("loss         {:.4f} nats per token\n", evaluation.loss);
  text += fmt::format("perplexity   {:.2f} per token, {:.6g} per word, {:.3f} bits per byte\n", evaluation.perplexity(),
                      evaluation.perplexity_per_word(tokens.text(), tokens.count()),
                      evaluation.bits_per_byte(tokens.text(), tokens.count()));
  text += describe_baseline(folder, baseline, evaluation.perplexity());
  const auto& tables = loaded.model->transformer().tables();
  for (size_t i = 0; i < tables.size(); ++i)
    text += describe_health(tables[i]->shape().name, tables[i]->shape().slots, evaluation.memories[i]);
  return text;
}

}  // namespace

int eval_command(Communicator& world, const EvalArguments& options) {
  LoadedModel loaded = load_model(world, options.checkpoint);
  std::string folder = options.data;
  std::optional<Tokens> tokens;
  agree(world, [&] {
    if (folder.empty()) folder = validation_folder(loaded);
    tokens = Tokens::open(folder, "valid", loaded.tokenizer->hash());
    tokens->verify(world.rank(), world.size());
    if (tokens->count() < 2)
      user_error("{}: {} validation tokens are too few; tokenize a longer corpus, or set aside a larger share of it",
                 folder, tokens->count());
  });
  const Evaluation evaluation = *evaluate(*loaded.model, *tokens, options.sequences);
  agree(world, [&] {
    if (world.rank() != 0) return;
    print_out(describe(loaded, folder, *tokens, evaluation, baseline_of(folder, *tokens)));
  });
  return 0;
}

}  // namespace pkmesh
