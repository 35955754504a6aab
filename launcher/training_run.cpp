// SPDX-License-Identifier: Apache-2.0
#include "launcher/training_run.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <thread>

#include "comm/agree.h"
#include "io/config.h"
#include "io/embedded.h"
#include "io/file.h"
#include "io/step_line.h"
#include "io/tokenize.h"
#include "launcher/memory_plan.h"
#include "runtime/cpu.h"
#include "runtime/log.h"
#include "runtime/parallel.h"
#include "runtime/process_memory.h"
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

double exchange_bytes(const Ledger& ledger) {
  int64_t bytes = 0;
  for (const Purpose purpose :
       {Purpose::kSelections, Purpose::kPartials, Purpose::kOutputGradients, Purpose::kWeightGradients})
    bytes += ledger[purpose].bytes;
  return static_cast<double>(bytes);
}

// By purpose, means over the steps: {"partials": {"mib": 2.5, "ms": 2.4}, ...}
nlohmann::json per_step(const Ledger& ledger, int64_t steps) {
  nlohmann::json figures;
  for (int i = 0; i < kPurposes; ++i) {
    const auto purpose = static_cast<Purpose>(i);
    const LedgerEntry& entry = ledger[purpose];
    if (entry.calls == 0) continue;
    figures[to_string(purpose)] = {{"mib", static_cast<double>(entry.bytes) / (1 << 20) / static_cast<double>(steps)},
                                   {"ms", 1e3 * entry.seconds / static_cast<double>(steps)}};
  }
  return figures;
}

nlohmann::json to_json(const MemoryHealth& health) {
  return {{"used", health.usage},           {"kl", health.kl_weighted},    {"kl_counted", health.kl_counted},
          {"gini", health.gini_weighted},   {"top1", health.top1_usage},   {"slots_50", health.slots_50},
          {"slots_90", health.slots_90},    {"slots_99", health.slots_99}, {"hottest_shard", health.hottest_shard},
          {"selections", health.selections}};
}

}  // namespace

TrainingRun::TrainingRun(Communicator& world, const config::Config& config, const TrainArguments& options)
    : world_(world), config_(config), options_(options) {
  std::string checkpoint;
  Device device;
  agree(world_, [&] {
    if (options_.out.empty()) user_error("train needs a run folder: --out FOLDER");
    if (options_.resume == "auto")
      checkpoint = latest_checkpoint(options_.out + "/checkpoints").value_or("");
    else if (!options_.resume.empty())
      checkpoint = find_checkpoint(options_.resume);
    device = choose_device(config_, world_);
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
    check_fits(plan_memory(config_, tokenizer_->vocabulary_size(), world_.hosts(), device.kind), world_, device);
  });
  if (built_in) agree_on(world_, "corpus", describe_data());
  trainer_ = std::make_unique<Trainer>(config_, world_, device, *sampler, tokenizer_->vocabulary_size());
  std::optional<CheckpointFacts> resumed;
  if (!checkpoint.empty()) resumed = resume(checkpoint);
  begin_folder();  // from here on lines are kept in train.log
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
                 hosts.names[static_cast<size_t>(host)], hosts.names[static_cast<size_t>(hosts.of_rank[0])]);
  });
  agree(world_, [&] {
    if (world_.rank() != 0) return;
    if (config_.data().source() == config::Data::BUILT_IN) tokenize_built_in_text(*folder_, options_.out + "/tokens");
  });
}

void TrainingRun::begin_folder() {
  agree(world_, [&] {
    if (world_.rank() != 0) return;
    log_to_file(folder_->log());  // what may be refused comes first
    metrics_.emplace(folder_->metrics(), steps_done());
    tensorboard_.emplace(folder_->tensorboard(), steps_done());
    folder_->begin(to_text(config_), {options_.command, world_.hosts()});
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

// "cpu", "cuda:0 over nccl"
std::string TrainingRun::computes_on() const {
  const Device device = trainer_->model().stream().device();
  const bool links = device.kind != DeviceKind::kCpu && world_.size() > 1;
  return to_string(device) + (links ? fmt::format(" over {}", to_string(resolve(device_link(config_)))) : "");
}

void TrainingRun::describe() {
  if (world_.rank() != 0) return;
  const TransformerShape& shape = trainer_->model().transformer().shape();
  const config::Train& plan = config_.train();
  log_info("pkmesh {} {}| {} on {} ({}), {} each, {} ({})", program_version(),
           program_commit().empty() ? "" : program_commit() + " ", counted(world_.size(), "rank"),
           counted(world_.hosts().count(), "host"), fmt::join(world_.hosts().names, ", "), counted(threads(), "thread"),
           computes_on(), to_string(cpu_level()));
  log_info("threads {}", options_.threads);
  const int64_t asked = config_.tokenizer().vocabulary();
  const bool learnt =
      config_.data().source() == config::Data::FOLDER && config_.tokenizer().kind() == config::Tokenizer::BPE;
  log_info("model   {} blocks, width {}, {} heads, context {}, vocabulary {}{}", shape.layers, shape.block.width,
           shape.block.heads, shape.context, shape.vocabulary,
           learnt && asked != shape.vocabulary ? fmt::format(", not tokenizer.vocabulary ({})", asked) : "");
  for (const MemorySite& site : shape.memories)
    log_info("memory  {} block {}: {} slots x {} in table {}, {} heads x {} neighbours", site.after ? "after" : "in",
             site.layer, site.table.slots, site.table.width, site.table.name, site.shape.heads, site.shape.neighbours);
  log_info("data    {}: {} tokens to train on, {} to validate on", tokens_folder_, count_text(train_tokens_->count()),
           count_text(valid_tokens_ ? valid_tokens_->count() : 0));
  log_info("plan    {} of {} of {} tokens; {} done", counted(plan.steps(), "step"), counted(plan.batch(), "sequence"),
           shape.context, steps_done());
  log_info("{}", to_text(plan_memory(config_, shape.vocabulary, world_.hosts(), planned_device(config_))));
  log_info("folder  {}", folder_->path());
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

void TrainingRun::report_step(const StepFigures& figures) {
  const Device device = trainer_->model().stream().device();
  StepLine line;
  line.step = figures.step;
  line.steps = config_.train().steps();
  line.loss = figures.loss;
  line.grad_norm = figures.dense_norm;
  line.learning_rate = figures.learning_rate;
  if (trainer_->scales_losses()) line.loss_scale = figures.loss_scale;
  line.step_ms = since_line_.seconds * 1e3 / static_cast<double>(since_line_.steps);
  line.tokens_per_s = static_cast<double>(since_line_.tokens) / since_line_.seconds;
  const ProcessMemory memory = process_memory();
  const bool on_gpu = device.kind != DeviceKind::kCpu;
  line.memory_used = static_cast<double>(on_gpu ? used_memory(device) : memory.resident);
  line.memory_total = static_cast<double>(on_gpu ? total_memory(device) : memory.machine_total);
  if (world_.size() > 1) line.exposed = since_line_.communication.total().seconds / since_line_.seconds;
  line.seconds_left = static_cast<double>(line.steps - line.step) * line.step_ms / 1e3;
  log_info("{}", to_string(line));
  if (world_.size() > 1) line_["communication"]["per_step"] = per_step(since_line_.communication, since_line_.steps);
  since_line_ = {};
}

void TrainingRun::report_memory() {
  const std::vector<MemoryHealth> health = trainer_->model().memory_health();
  const auto& tables = trainer_->model().transformer().tables();
  const double bytes = exchange_bytes(since_memory_.communication) / static_cast<double>(since_memory_.steps);
  for (size_t i = 0; i < tables.size(); ++i) {
    const std::string& name = tables[i]->shape().name;
    line_["memory"][name] = to_json(health[i]);
    if (tables.size() == 1) line_["memory"][name]["mib_per_step"] = bytes / (1 << 20);
    MemoryLine line;
    line.layer = name;
    line.used = health[i].usage;
    line.kl = health[i].kl_weighted;
    line.hottest_shard = health[i].hottest_shard;
    if (tables.size() == 1) line.bytes_per_step = bytes;
    log_info("{}", to_string(line));
  }
  trainer_->model().reset_usage();
  since_memory_ = {};
}

bool TrainingRun::validate(const std::function<bool()>& stop) {
  if (!valid_tokens_) return true;
  const auto begin = Clock::now();
  const BatchShape batch = {config_.train().batch(), config_.train().accumulate(), world_.rank(), world_.size()};
  const std::optional<Evaluation> measured =
      evaluate(trainer_->model(), *valid_tokens_, config_.train().eval_sequences(),
               std::min<int64_t>(16, batch.largest_share()), stop);
  trainer_->model().reset_usage();
  if (!measured) return false;
  const Evaluation& evaluation = *measured;
  line_["validation"] = {
      {"loss", evaluation.loss}, {"perplexity", evaluation.perplexity()}, {"tokens", evaluation.tokens}};
  if (evaluation.whole)
    line_["validation"]["perplexity_per_word"] =
        evaluation.perplexity_per_word(valid_tokens_->text(), valid_tokens_->count());
  for (size_t i = 0; i < evaluation.memories.size(); ++i)
    line_["validation"]["memory"][trainer_->model().transformer().tables()[i]->shape().name] =
        to_json(evaluation.memories[i]);
  log_info("validation after step {} | loss {:.4f} | perplexity {:.2f} | {} tokens | {}", steps_done(), evaluation.loss,
           evaluation.perplexity(), count_text(static_cast<double>(evaluation.tokens)),
           duration_text(std::chrono::duration<double, std::milli>(Clock::now() - begin).count()));
  return true;
}

void TrainingRun::end_step() {
  agree(world_, [&] {
    if (world_.rank() != 0) return;
    metrics_->append(line_);
    tensorboard_->append(line_);
  });
}

void TrainingRun::save(bool at_the_end) {
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
  if (since_start_.steps == 0)
    log_info("nothing to do: all {} steps are done; for more, --set train.steps=...", steps_done());
  if (world_.rank() == 0 && since_start_.steps > 0)
    log_info("done    {}{} in {}: {} tok/s", counted(since_start_.steps, "step"),
             skipped_ > 0 ? fmt::format(" ({} of them skipped)", skipped_) : "", time_left_text(since_start_.seconds),
             count_text(static_cast<double>(since_start_.tokens) / since_start_.seconds));
  if (options_.profile && since_start_.steps > 0) report_profile();
}

void TrainingRun::report_profile() {
  observe_ranges(nullptr);
  const CommunicationReport report =
      collect(world_, since_start_.communication, since_start_.steps, since_start_.seconds);
  const std::string trace = write_traces(world_, *trace_, options_.out + "/trace");
  agree(world_, [&] {
    if (world_.rank() != 0) return;
    log_info(
        "\n{}\n{}",
        to_table(trace_->totals(), since_start_.steps, since_start_.seconds / static_cast<double>(since_start_.steps)),
        to_table(report));
    replace_text(options_.out + "/profile.json", to_json(report).dump(2) + "\n");
    log_info("trace   {}{} (open it in ui.perfetto.dev); figures in {}/profile.json", trace,
             trace_->dropped() > 0 ? " of the first steps, for there is no room for more" : "", options_.out);
  });
}

}  // namespace pkmesh
