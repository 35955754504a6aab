// SPDX-License-Identifier: Apache-2.0
// What a TrainingRun tells: its description, lines, figures, validation and profile. What it does is
// training_run.cpp's.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "comm/agree.h"
#include "io/file.h"
#include "io/step_line.h"
#include "launcher/memory_plan.h"
#include "launcher/training_run.h"
#include "runtime/cpu.h"
#include "runtime/log.h"
#include "runtime/parallel.h"
#include "runtime/process_memory.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

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

// "cpu", "cuda:0 over nccl"
std::string TrainingRun::computes_on() const {
  const Device device = trainer_->device();
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
    log_info("memory  {} block {}: {} slots x {} in table {}, {} heads x {} neighbours{}", site.after ? "after" : "in",
             site.layer, site.table.slots, site.table.width, site.table.name, site.shape.heads, site.shape.neighbours,
             world_.hosts().count() > 1 ? ", exchanges " + to_text(site.shape.exchange, world_.hosts()) : "");
  log_info("data    {}: {} tokens to train on, {} to validate on", tokens_folder_, count_text(train_tokens_->count()),
           count_text(valid_tokens_ ? valid_tokens_->count() : 0));
  if (!valid_tokens_ && plan.eval_every() > 0)
    log_warning(
        "no validation, though train.eval_every is {}: {} has no validation tokens; tokenize with a "
        "data.validation_share, name other tokens (data.valid), or set train.eval_every to 0",
        plan.eval_every(), config_.data().valid().empty() ? tokens_folder_ : config_.data().valid());
  log_info("plan    {} of {} of {} tokens; {} done", counted(plan.steps(), "step"), counted(plan.batch(), "sequence"),
           shape.context, steps_done());
  log_info("{}", to_text(plan_memory(config_, shape.vocabulary, world_.hosts(), planned_device(config_))));
  log_info("folder  {}", folder_->path());
}

void TrainingRun::report_step(const StepFigures& figures) {
  const Device device = trainer_->device();
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
    line.table = name;
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
  valid_ = std::isfinite(evaluation.loss);
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
