// SPDX-License-Identifier: Apache-2.0
// `pkmesh bench memory`: what training holds in memory, against what `pkmesh train --dry-run` said. A few steps are
// taken on real tokens; then every row's moments are written to once, as they will have been in a long run: until then
// the system lends pages only for rows that were read.
#include <fmt/format.h>

#include "comm/agree.h"
#include "launcher/bench.h"
#include "launcher/bench_tokens.h"
#include "launcher/memory_plan.h"
#include "launcher/trainer.h"
#include "runtime/parallel.h"
#include "runtime/process_memory.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

// Writes to each page what stands there.
void touch(std::span<std::byte> bytes) {
  constexpr int64_t kPage = 4096;
  const auto count = std::ssize(bytes);
  parallel_for(0, (count + kPage - 1) / kPage, 256, [&](int64_t begin, int64_t end) {
    for (int64_t page = begin; page < end; ++page) {
      volatile std::byte& place = bytes[static_cast<size_t>(page * kPage)];
      place = place;
    }
  });
}

// Bytes of one rank, and what became of them over all.
class MemoryTable {
 public:
  MemoryTable(Communicator& world, int64_t planned, BenchReport& report)
      : world_(world), planned_(planned), report_(report) {
    report_.line(fmt::format("{:<34}{:>14}{:>14}{:>12}", "memory", "of a rank", "of all ranks", "of the plan"));
    line("planned", planned);
  }

  void line(const std::string& what, int64_t bytes) {
    const double most = slowest(world_, static_cast<double>(bytes));
    auto sum = static_cast<double>(bytes);
    world_.all_reduce(std::span<double>(&sum, 1), Reduction::kSum, Purpose::kControl);
    const double share = sum / (static_cast<double>(planned_) * world_.size());
    report_.line(fmt::format("{:<34}{:>14}{:>14}{:>11.1f}%", what, bytes_text(most), bytes_text(sum), share * 100));
    report_.figures["memory"].push_back({{"what", what}, {"rank_bytes", most}, {"bytes", sum}, {"of_plan", share}});
  }

 private:
  Communicator& world_;
  int64_t planned_;
  BenchReport& report_;
};

}  // namespace

void bench_memory(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report) {
  std::optional<TrainingTokens> data;
  agree(world, [&] { data = training_tokens(config); });
  const MemoryPlan plan = plan_memory(config, data->vocabulary, world.hosts(), DeviceKind::kCpu);
  report.line(to_text(plan));

  const ProcessMemory before = process_memory();
  Trainer trainer(config, world, Device{}, BatchSampler(data->tokens, config.model().context(), config.data().seed()),
                  data->vocabulary);
  MemoryTable table(world, plan.bytes_per_rank(), report);
  const auto grown = [&] { return process_memory().resident - before.resident; };
  table.line("the program before the model", before.resident);
  table.line("model, no step", grown());
  std::vector<double> ms;
  for (int i = 0; i < options.repeats; ++i) {
    world.barrier();
    const StepFigures step = trainer.step();
    PKM_CHECK(!step.skipped, "step {} was skipped: {}", step.step, step.why_skipped);
    ms.push_back(slowest(world, step.seconds * 1e3));
    report.figures["losses"].push_back(step.loss);
  }
  table.line("model, after " + counted(options.repeats, "step"), grown());
  for (const auto& sharded : trainer.contents().tables)
    for (const RowTensor& tensor : sharded.tensors) touch(tensor.bytes);
  const StepFigures last = trainer.step();
  table.line("model, every row written once", grown());
  table.line("peak of the process", process_memory().peak);
  report.line(fmt::format("\nsteps {} ms; loss {:.3f} at the first, {:.3f} at the last", to_text(spread_of(ms)),
                          report.figures["losses"][0].get<double>(), last.loss));
  report.figures["ms"] = to_json(spread_of(ms));
}

}  // namespace pkmesh
