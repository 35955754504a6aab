// SPDX-License-Identifier: Apache-2.0
// `pkmesh tokenize`: text to a tokenizer and token files, with a progress bar on a terminal.
#include "io/tokenize.h"

#include <fmt/format.h>

#include <cstdio>

#include "comm/agree.h"
#include "io/config.h"
#include "launcher/commands.h"
#include "runtime/check.h"
#include "runtime/log.h"
#include "runtime/range.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

class ProgressBar {
 public:
  void show(const TokenizeProgress& progress) {
    const auto now = Clock::now();
    if (!terminal_ || (now - shown_ < std::chrono::milliseconds(100) && progress.phase == phase_)) return;
    shown_ = now;
    phase_ = progress.phase;
    const double share =
        progress.total > 0 ? static_cast<double>(progress.done) / static_cast<double>(progress.total) : 0;
    const int filled = static_cast<int>(share * kWidth);
    fmt::print(stderr, "\r\033[K{:<9} [{:#<{}}{:.<{}}] {:3.0f}% {}", progress.phase, "", filled, "", kWidth - filled,
               100 * share, bytes_text(static_cast<double>(progress.done)));
  }
  ~ProgressBar() {
    if (terminal_ && !phase_.empty()) fmt::print(stderr, "\r\033[K");
  }

 private:
  static constexpr int kWidth = 40;
  bool terminal_ = stderr_is_terminal();
  Clock::time_point shown_;
  std::string phase_;
};

std::string describe(const SplitSummary& split) {
  return fmt::format("{} in {}, from {} of text, {}", counted(split.tokens, "token"), counted(split.shards, "file"),
                     bytes_text(static_cast<double>(split.text.bytes)), counted(split.text.words, "word"));
}

void describe_tokenizer(const TokenizeOptions& options, const TokenizeSummary& summary) {
  if (!options.tokenizer_folder.empty()) {
    log_info("tokenizer  {} pieces, that of {}", summary.vocabulary_size, options.tokenizer_folder);
  } else if (options.kind == TokenizerKind::kByte) {
    log_info("tokenizer  bytes");
  } else {
    const bool fewer = summary.vocabulary_size < options.vocabulary_size;
    log_info("tokenizer  {} pieces, learnt in {}{}", summary.vocabulary_size,
             duration_text(1e3 * summary.learning_seconds),
             fewer ? fmt::format("; the text has no more for the {} asked for", options.vocabulary_size) : "");
  }
  const auto text = static_cast<double>(summary.train.text.bytes + summary.valid.text.bytes);
  if (summary.raw_bytes > 0) {
    const double percent = 100 * static_cast<double>(summary.raw_bytes) / text;
    if (summary.raw_bytes == 1)
      log_warning("1 byte ({:.2g}% of the text) is not UTF-8 or is a control character: is it text?", percent);
    else
      log_warning("{} bytes ({:.2g}% of the text) are not UTF-8 or are control characters{}: is it text?",
                  summary.raw_bytes, percent, summary.tokenizer_kind == TokenizerKind::kByte ? "" : ", a token each");
  }
}

// Whole blocks are drawn, so of a small corpus the share may be far from what was asked for.
void warn_of_share(double asked, const TokenizeSummary& summary) {
  const auto valid = static_cast<double>(summary.valid.text.bytes);
  const double got = valid / (valid + static_cast<double>(summary.train.text.bytes));
  if (asked > 0 && got == 0)
    log_warning(
        "data.validation_share is {:.3g}, but the text is too short to be parted, and there is none to validate on; "
        "give more, or other text to validate on (data.valid)",
        asked);
  else if (got > 2 * asked || got < asked / 2)
    log_warning(
        "data.validation_share is {:.3g}, but {:.2g} of the text is for validation: it is too short to be parted as "
        "asked; give more, or try another data.seed",
        asked, got);
}

}  // namespace

int tokenize_command(Communicator& world, const TokenizeArguments& arguments) {
  agree(world, [&] {
    if (world.size() > 1) user_error("tokenize uses the cores of one machine: start it without mpirun");
    for (const std::string& assignment : arguments.source.overrides)
      if (!arguments.tokenizer.empty() && assignment.starts_with("tokenizer."))
        user_error("--set {}: is for learning a tokenizer, and --tokenizer {} has one; drop either", assignment,
                   arguments.tokenizer);
  });
  const ConfigSource& source = arguments.source;
  const config::Config config = source.config.empty() ? parse_config("", "the defaults", source.overrides)
                                                      : load_config(source.config, source.overrides);
  TokenizeOptions options;
  options.inputs = arguments.inputs;
  options.folder = arguments.out;
  options.tokenizer_folder = arguments.tokenizer;
  options.kind =
      config.tokenizer().kind() == config::Tokenizer::BYTE ? TokenizerKind::kByte : TokenizerKind::kSentencePiece;
  options.vocabulary_size = config.tokenizer().vocabulary();
  options.character_coverage = config.tokenizer().character_coverage();
  options.training_bytes = config.tokenizer().training_bytes();
  options.validation_share = config.data().validation_share();
  options.seed = config.data().seed();
  options.threads = arguments.threads;
  TokenizeSummary summary;
  {
    ProgressBar bar;
    options.progress = [&](const TokenizeProgress& progress) { bar.show(progress); };
    summary = tokenize(options);
  }
  describe_tokenizer(options, summary);
  log_info("train      {}", describe(summary.train));
  log_info("valid      {}", describe(summary.valid));
  warn_of_share(options.validation_share, summary);
  log_info("speed      {}/s", bytes_text(static_cast<double>(summary.train.text.bytes + summary.valid.text.bytes) /
                                         summary.encoding_seconds));
  const bool plain = arguments.out.find_first_of(" \t\"'$&;()<>|*?`\\") == std::string::npos;  // for a shell
  log_info("folder     {} (train with --set {})", arguments.out,
           plain ? "data.train=" + arguments.out : fmt::format("'data.train={}'", arguments.out));
  return 0;
}

}  // namespace pkmesh
