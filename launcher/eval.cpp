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

// Where the run's tokens are: `named`, or for the built-in text the run's own folder.
std::string tokens_folder(const LoadedModel& loaded, const std::string& named) {
  const std::filesystem::path run = std::filesystem::canonical(loaded.path).parent_path().parent_path();
  return loaded.config.data().source() == config::Data::BUILT_IN ? (run / "tokens").string() : named;
}

std::string validation_folder(const LoadedModel& loaded) {
  std::string folder = tokens_folder(loaded, loaded.config.data().valid());
  std::error_code error;
  if (!std::filesystem::exists(folder, error))
    user_error("{}: the validation data of its run, {}, is not there; pass --data FOLDER", loaded.path, folder);
  return folder;
}

bool has_training_tokens(const std::string& folder, const Tokens& valid) {
  std::error_code error;
  return std::filesystem::exists(folder, error) && Tokens::exist(folder, "train") &&
         Tokens::open(folder, "train").tokenizer_hash() == valid.tokenizer_hash();
}

// What counting achieves on the same tokens as the model: counting the run's training tokens or, where these are not
// there any more, those beside the data.
std::string describe_baseline(const LoadedModel& loaded, const std::string& data, const Tokens& valid,
                              const Evaluation& evaluation) try {
  const std::string trained = tokens_folder(loaded, loaded.config.data().train());
  const std::string& counted = has_training_tokens(trained, valid) ? trained : data;
  if (!has_training_tokens(counted, valid))
    return fmt::format("baselines    none: {} has no training tokens to count\n", counted);
  const NgramBaseline baseline = ngram_baseline(Tokens::open(counted, "train"), valid, evaluation.tokens);
  return fmt::format(
      "baselines    unigram {:.2f}, bigram {:.2f} per token{}; the model's perplexity is {:.2f} times the bigram's\n",
      baseline.unigram_perplexity, baseline.bigram_perplexity,
      counted == data ? "" : fmt::format(" (counts of {})", counted),
      evaluation.perplexity() / baseline.bigram_perplexity);
} catch (const UserError& error) {  // no reason to lose the evaluation
  return fmt::format("baselines    none: {}\n", error.what());
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
                     const Evaluation& evaluation) {
  std::string text = fmt::format("checkpoint   {} (step {})\n", loaded.path, loaded.facts.step);
  text +=
      fmt::format("data         {}: {} tokens in {} sequences of {}{}\n", folder, evaluation.tokens,
                  evaluation.sequences, loaded.config.model().context(), evaluation.whole ? "" : ", the first of more");
  text += fmt::format("loss         {:.4f} nats per token\n", evaluation.loss);
  text += fmt::format("perplexity   {:.2f} per token", evaluation.perplexity());
  if (evaluation.whole) {  // how many words and bytes a part has is not known
    if (tokens.text().words > 0)
      text += fmt::format(", {:.6g} per word", evaluation.perplexity_per_word(tokens.text(), tokens.count()));
    text += fmt::format(", {:.3f} bits per byte", evaluation.bits_per_byte(tokens.text(), tokens.count()));
  }
  text += fmt::format("\n{}", describe_baseline(loaded, folder, tokens, evaluation));
  const auto& tables = loaded.model->transformer().tables();
  for (size_t i = 0; i < tables.size(); ++i)
    text += describe_health(tables[i]->shape().name, tables[i]->shape().slots, evaluation.memories[i]);
  return text;
}

}  // namespace

int eval_command(Communicator& world, const EvalArguments& options) {
  LoadedModel loaded = load_model(world, options.checkpoint, Reading::kEvaluation);
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
  const Evaluation evaluation =
      *evaluate(*loaded.model, *tokens, options.sequences, windows_at_once(loaded.config.model().context()));
  if (!std::isfinite(evaluation.loss))
    throw AgreedError(
        fmt::format("{}: its loss is not finite: the run had diverged; take an older checkpoint", loaded.path));
  agree(world, [&] {
    if (world.rank() != 0) return;
    print_out(describe(loaded, folder, *tokens, evaluation));
  });
  return 0;
}

}  // namespace pkmesh
