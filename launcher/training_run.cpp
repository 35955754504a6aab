// SPDX-License-Identifier: Apache-2.0
#include "launcher/training_run.h"

#include <fmt/format.h>

#include <filesystem>
#include <thread>

#include "comm/agree.h"
#include "io/config.h"
#include "io/embedded.h"
#include "io/file.h"
#include "io/tokenize.h"
#include "launcher/memory_plan.h"
#include "runtime/log.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

// Damaged tokens are found before anything is written if the corpus has no more bytes than this for each rank to read;
// in a larger one when they are first read.
constexpr int64_t kVerifiedAtStart = int64_t{1} << 30;

// Steps in turn that were not finite: the parameters are at fault, which no further step changes, and not its tokens.
constexpr int64_t kDiverged = 20;
// One or two may pass, and what was learnt until then is better kept than not when the run ends.
constexpr int64_t kDoubtful = 3;

// The program's own text as a corpus: written where a new run keeps its files, then tokenized as any other.
void tokenize_built_in_text(const RunFolder& folder, const std::string& tokens) {
  if (std::filesystem::exists(tokens)) return;
  if (folder.resumed())
    user_error("{}: is not there: this run had other data; resume it with its own configuration", tokens);
  const std::string text = folder.path() + "/built-in.txt";
  replace_text(text, built_in_text());
  TokenizeOptions options;
  options.inputs = {text};
  options.folder = tokens;
  options.kind = TokenizerKind::kByte;
  options.validation_share = 0.1;
  tokenize(options);
}

std::string describe_split(const char* what, const std::optional<Tokens>& tokens) {
  return tokens ? fmt::format("{} {} ({:016x})", tokens->count(), what, tokens->fingerprint())
                : fmt::format("no {}", what);
}

std::string nothing_to_do(int64_t done, int64_t wanted) {
  return fmt::format("nothing to do: step {} is done, and train.steps is {}; set more", done, wanted);
}

// "" for none. A run that has none of its own yet may have begun with another's.
std::string checkpoint_to_resume(const TrainArguments& options) {
  if (options.resume.empty()) return "";
  if (options.resume != "auto") return find_checkpoint(options.resume);
  if (const auto own = latest_checkpoint(options.out + "/checkpoints")) return *own;
  const std::string origin = run_origin(options.out);
  std::error_code error;
  if (!origin.empty() && !std::filesystem::exists(origin, error))
    user_error("{}: has no checkpoint, and {}, which it began from, is not there; give --resume CHECKPOINT",
               options.out, origin);
  return origin.empty() ? "" : find_checkpoint(origin);
}

// The run that goes on from `checkpoint` ("": from the beginning) must find no other one to be its newest: metrics
// behind it are discarded, and what a run has saved is not for us to remove.
void expect_newest(const std::string& checkpoint, const std::string& folder) {
  const std::optional<std::string> newest = newest_folder(folder);
  std::error_code error;
  if (newest && (checkpoint.empty() || !std::filesystem::equivalent(*newest, checkpoint, error)))
    user_error("{}: is in the way of going on from {}: resume it (auto), remove it, or give another --out", *newest,
               checkpoint.empty() ? "the beginning" : checkpoint);
}

// Whether there is a file with this text; on other hosts a shared file system may show it some seconds later.
bool holds(const std::string& path, const std::string& text, std::chrono::seconds patience) {
  const auto end = Clock::now() + patience;
  while (true) {
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored) && read_text(path) == text) return true;
    if (Clock::now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

}  // namespace

TrainingRun::TrainingRun(Communicator& world, const config::Config& config, const TrainArguments& options)
    : world_(world), config_(config), options_(options) {
  std::string checkpoint;
  Device device;
  const GpuSeat seat = find_gpu_seat(config_, world_);
  agree(world_, [&] {
    if (options_.out.empty()) user_error("train needs a run folder: --out FOLDER");
    checkpoint = checkpoint_to_resume(options_);
    if (!checkpoint.empty() && options_.resume != "auto" && read_manifest(checkpoint).step >= config_.train().steps())
      user_error("{}: {}", checkpoint, nothing_to_do(read_manifest(checkpoint).step, config_.train().steps()));
    device = choose_device(config_, world_, seat);
    if (config_.data().source() == config::Data::FOLDER) open_tokens(config_.data().train());
  });
  // Disks that are not shared may differ, and so may hosts.
  agree_on(world_, "checkpoint to go on from", checkpoint.empty() ? "none" : checkpoint);
  agree_on(world_, "device", device_choice(config_, device));
  const bool built_in = config_.data().source() == config::Data::BUILT_IN;
  if (!built_in) agree_on(world_, "corpus", describe_data());
  make_folder(checkpoint);
  std::optional<BatchSampler> sampler;
  agree(world_, [&] {
    if (built_in) open_tokens(options_.out + "/tokens");
    sampler.emplace(*train_tokens_, config_.model().context(), config_.data().seed());
    check_fits(plan_memory(config_, tokenizer_->vocabulary_size(), world_.hosts(), device.kind), world_, device, seat);
  });
  if (built_in) agree_on(world_, "corpus", describe_data());
  trainer_ = std::make_unique<Trainer>(config_, world_, device, *sampler, tokenizer_->vocabulary_size());
  std::optional<CheckpointFacts> resumed;
  if (!checkpoint.empty()) resumed = resume(checkpoint);
  begin_folder(checkpoint);  // from here on lines are kept in train.log
  if (resumed) {
    log_info("resumed from {} after step {}", checkpoint, steps_done());
    report_changes(*resumed);
  } else if (!options_.resume.empty()) {
    log_info("{} has no checkpoint yet: from the beginning", options_.out);
  }
  if (options_.profile) {
    trace_.emplace(world_);
    observe_ranges(&*trace_);
  }
}

TrainingRun::~TrainingRun() {
  observe_ranges(nullptr);
}

void TrainingRun::open_tokens(const std::string& folder) {
  if (folder.empty())
    user_error("data.train is empty: name a folder that `pkmesh tokenize` wrote, --set data.train=FOLDER");
  tokens_folder_ = folder;
  tokenizer_ = load_tokenizer(folder);
  train_tokens_ = Tokens::open(folder, "train", tokenizer_->hash());
  const std::string& valid = config_.data().valid().empty() ? folder : config_.data().valid();
  valid_tokens_ = Tokens::open(valid, "valid", tokenizer_->hash());
  for (const auto& tokens : {train_tokens_, valid_tokens_})
    if (tokens->bytes() <= world_.size() * kVerifiedAtStart) tokens->verify(world_.rank(), world_.size());
  if (valid_tokens_->count() < 2) valid_tokens_.reset();
}

std::string TrainingRun::describe_data() const {
  return describe_split("training tokens", train_tokens_) + ", " + describe_split("validation tokens", valid_tokens_);
}

void TrainingRun::make_folder(const std::string& checkpoint) {
  std::string mark;
  std::string text;
  agree(world_, [&] {
    if (world_.rank() != 0) return;
    folder_.emplace(options_.out, !options_.resume.empty());
    // Only now is it ours: the run that had it may have saved meanwhile.
    if (!options_.resume.empty()) expect_newest(checkpoint, folder_->checkpoints());
    mark = folder_->mark();
    text = read_text(mark);
  });
  // All ranks write rows into its checkpoints.
  mark = broadcast_text(world_, 0, mark);
  text = broadcast_text(world_, 0, text);
  agree(world_, [&] {
    const Hosts& hosts = world_.hosts();
    const int host = hosts.of_rank[static_cast<size_t>(world_.rank())];
    if (!holds(mark, text, std::chrono::seconds(host == hosts.of_rank[0] ? 0 : 20)))
      user_error("{}: is not on {} what it is on {}; give an --out that all hosts share", options_.out,
                 hosts.name_of(world_.rank()), hosts.name_of(0));
  });
  agree(world_, [&] {
    if (world_.rank() != 0) return;
    if (config_.data().source() == config::Data::BUILT_IN) tokenize_built_in_text(*folder_, options_.out + "/tokens");
  });
}

void TrainingRun::begin_folder(const std::string& checkpoint) {
  agree(world_, [&] {
    if (world_.rank() != 0) return;
    log_to_file(folder_->log());  // what may be refused comes first
    const std::string from =
        checkpoint.empty() ? "" : std::filesystem::absolute(checkpoint).lexically_normal().string();
    metrics_.emplace(folder_->metrics(), steps_done());
    tensorboard_.emplace(folder_->tensorboard(), steps_done());
    folder_->begin(to_text(config_), {options_.command, world_.hosts(), from});
  });
  log_errors_to_file(options_.out + "/train.log");
}

CheckpointFacts TrainingRun::resume(const std::string& checkpoint) {
  CheckpointFacts facts = load_checkpoint(world_, checkpoint, trainer_->contents());
  agree(world_, [&] {
    if (facts.tokenizer_hash != tokenizer_->hash())
      user_error("{}: was trained with another tokenizer than {} has; pass the tokens of that run", checkpoint,
                 tokens_folder_);
  });
  trainer_->set_steps_done(facts.step);
  return facts;
}

// A run may go on with other options; that it does is said.
void TrainingRun::report_changes(const CheckpointFacts& facts) const {
  if (!facts.corpus.empty() && facts.corpus != describe_data())
    log_info("changed corpus: {} -> {}", facts.corpus, describe_data());
  try {
    const auto changes = config_changes(parse_config(facts.config_text, "the checkpoint's configuration"), config_);
    for (const std::string& change : changes) log_info("changed {}", change);
  } catch (const UserError& error) {  // it names options that this program has not
    log_info("changed {}", error.what());
  }
}

void TrainingRun::step() {
  if (skipped_in_turn_ >= kDiverged && !trainer_->may_lower_scale())
    throw AgreedError(fmt::format(
        "{} steps in turn were not finite: the run has diverged; go on from a checkpoint before it with a lower "
        "learning rate, in another --out",
        skipped_in_turn_));
  const StepFigures figures = trainer_->step();
  for (Window* window : {&since_line_, &since_memory_, &since_start_}) {
    ++window->steps;
    window->seconds += figures.seconds;
    window->tokens += figures.tokens;
    window->communication += figures.communication;
  }
  if (figures.skipped) log_info("step {} skipped: {}", figures.step, figures.why_skipped);
  skipped_ += figures.skipped ? 1 : 0;
  skipped_in_turn_ = figures.skipped ? skipped_in_turn_ + 1 : 0;
  line_ = {{"step", figures.step},
           {"loss", figures.loss},
           {"lr", figures.learning_rate},
           {"grad_norm", figures.dense_norm},
           {"step_ms", figures.seconds * 1e3},
           {"tokens_per_s", static_cast<double>(figures.tokens) / figures.seconds}};
  if (figures.values_norm) line_["values_grad_norm"] = *figures.values_norm;
  if (figures.skipped) line_["skipped"] = true;
  if (trainer_->scales_losses()) line_["loss_scale"] = figures.loss_scale;
  if (world_.size() > 1)
    line_["communication"] = {{"exposed", figures.communication.total().seconds / figures.seconds}};
  if (figures.step % config_.train().log_every() == 0 || figures.step == config_.train().steps() || figures.step == 1)
    report_step(figures);
}

void TrainingRun::end_step() {
  agree(world_, [&] {
    if (world_.rank() != 0) return;
    metrics_->append(line_);
    tensorboard_->append(line_);
  });
}

void TrainingRun::save(bool at_the_end) {
  if (!valid_) {
    const std::string text =
        fmt::format("no checkpoint after step {}: the last validation loss was not finite", steps_done());
    if (at_the_end) throw AgreedError(text + "; go on from an older one with a lower learning rate, in another --out");
    return log_warning("{}, and older ones may be better", text);
  }
  if (skipped_in_turn_ >= (at_the_end ? kDoubtful : 1) && !trainer_->may_lower_scale()) {
    if (at_the_end)
      throw AgreedError(fmt::format(
          "no checkpoint after step {}: the last {} steps were not finite; go on from an older one with a lower "
          "learning rate, in another --out",
          steps_done(), skipped_in_turn_));
    log_warning("no checkpoint after step {}: it was not finite, and older ones may be better", steps_done());
    return;
  }
  CheckpointFacts facts;
  facts.step = steps_done();
  facts.config_text = to_text(config_);
  facts.corpus = describe_data();
  facts.tokenizer_hash = tokenizer_->hash();
  facts.attachments = tokenizer_->files();
  const auto begin = Clock::now();
  const std::string path = save_checkpoint(world_, options_.out + "/checkpoints", facts, trainer_->contents(),
                                           {.keep = config_.train().keep_checkpoints()});
  log_info("checkpoint {} ({})", path,
           duration_text(std::chrono::duration<double, std::milli>(Clock::now() - begin).count()));
}

void TrainingRun::finish() {
  if (since_start_.steps == 0) log_info("{}", nothing_to_do(steps_done(), config_.train().steps()));
  if (world_.rank() == 0 && since_start_.steps > 0)
    log_info("done    {}{} in {}: {} tok/s", counted(since_start_.steps, "step"),
             skipped_ > 0 ? fmt::format(" ({} of them skipped)", skipped_) : "", time_left_text(since_start_.seconds),
             count_text(static_cast<double>(since_start_.tokens) / since_start_.seconds));
  if (options_.profile && since_start_.steps > 0) report_profile();
}

}  // namespace pkmesh
