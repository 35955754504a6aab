// SPDX-License-Identifier: Apache-2.0
#include "launcher/bench_layer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "launcher/bench.h"
#include "layers/elementwise.h"
#include "optim/clipping.h"
#include "runtime/parallel.h"
#include "runtime/process_memory.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

constexpr double kRate = 1e-4;

int64_t distinct(std::vector<int32_t> values) {
  std::ranges::sort(values);
  return std::unique(values.begin(), values.end()) - values.begin();
}

Adam make_adam(Device device, Parameters& parameters, const AdamOptions& options) {
  parameters.allocate(device, 1);
  return Adam(device, {{0, parameters.count()}}, options);
}

}  // namespace

LayerBench::LayerBench(const config::Config& config, Communicator& world, Device device)
    : world_(world),
      site_(first_memory(config)),
      row_options_(row_options(config)),
      tokens_(int64_t{config.train().batch()} * config.model().context()),
      stream_(device),
      arena_(device),
      table_(site_.table, world, device, 1),
      layer_(parameters_, "memory", site_.shape, table_),
      rows_(device, site_.table.name, table_.placement(), world.rank(), site_.table.width, row_options_, 1),
      adam_(make_adam(device, parameters_, dense_options(config))),
      inputs_(device, kInputs * tokens_ * site_.shape.width),
      output_gradient_(device, tokens_ * site_.shape.width),
      input_gradient_(device, tokens_ * site_.shape.width) {
  const Random random(1, "bench", world.rank());
  random.normals(0, inputs_.count(), 1.0F, inputs_.data());
  const auto scale = 1.0F / std::sqrt(static_cast<float>(output_gradient_.count()));
  Random(2, "bench", world.rank()).normals(0, output_gradient_.count(), scale, output_gradient_.data());
}

StepContext LayerBench::context() {
  StepContext context{stream_, arena_, world_};
  context.draw = step_;
  context.all_tokens = tokens_ * world_.size();
  return context;
}

Matrix<const float> LayerBench::input() const {
  const int64_t width = site_.shape.width;
  return Matrix<const float>(inputs_.data() + step_ % kInputs * tokens_ * width, tokens_, width);
}

Matrix<const float> LayerBench::output_gradient() const {
  return Matrix<const float>(output_gradient_.data(), tokens_, site_.shape.width);
}

void LayerBench::repeat_tokens(int64_t distinct) {
  const int64_t width = site_.shape.width;
  for (int64_t input = 0; input < kInputs; ++input) {
    float* tokens = inputs_.data() + input * tokens_ * width;
    for (int64_t t = distinct; t < tokens_; ++t) std::copy_n(tokens + t % distinct * width, width, tokens + t * width);
  }
}

void LayerBench::forward() {
  ++step_;
  arena_.reset();
  StepContext step = context();
  layer_.forward(step, input());
}

void LayerBench::backward() {
  StepContext step = context();
  rows_moved_ = false;
  step.move_rows = [this](const ValueTable&, const RowGradients& gradients, Vector<float> dweights) {
    move_rows(gradients, dweights);
    return rows_moved_;
  };
  table_.forget_pending();
  layer_.backward(step, output_gradient(), Matrix<float>(input_gradient_.data(), tokens_, site_.shape.width));
}

void LayerBench::move_rows(const RowGradients& gradients, Vector<float> dweights) {
  GateShare share;
  rows_.add_squares_bound(stream_, gradients, Vector<double>(&share.values_squares, 1));
  share.tokens = static_cast<double>(tokens_);
  PKM_CHECK(decide(world_, share).open(), "a row's gradient of the benchmark is not finite");
  rows_.step(stream_, table_.rows(), gradients, 1.0, kRate, step_, dweights);
  rows_moved_ = true;
}

void LayerBench::update() {
  GateShare share;
  add_sum_of_squares(stream_, Vector<const float>(parameters_.gradients().data(), parameters_.count()),
                     Vector<double>(&share.dense_squares, 1));
  if (!rows_moved_)
    rows_.add_squares_bound(stream_, table_.row_gradients(stream_), Vector<double>(&share.values_squares, 1));
  share.tokens = static_cast<double>(tokens_);
  const Gate gate = decide(world_, share);
  PKM_CHECK(gate.open(), "a gradient of the benchmark is not finite");
  adam_.step(stream_, parameters_.values(), parameters_.gradients(), 1.0, kRate, step_);
  if (!rows_moved_) rows_.step(stream_, table_.rows(), table_.row_gradients(stream_), 1.0, kRate, step_);
  std::ranges::fill(parameters_.gradients(), 0.0F);
}

LookupShape LayerBench::lookup() const {
  LookupShape shape = lookup_shape(site_, row_options_, tokens_);
  shape.distinct_rows = static_cast<double>(distinct_rows(layer_.slots()));
  shape.summed = table_.sums(shape.selections() * world_.size());
  shape.distinct_sub_keys = mean_distinct_sub_keys(layer_.slots(), shape.heads, shape.sub_keys);
  return shape;
}

LayerTimes time_layer(LayerBench& bench, Communicator& world, int repeats) {
  constexpr std::array kRowPhases = {"pooled gather",      "sum by row",        "count usage",
                                     "sort row gradients", "row squares bound", "update rows"};
  std::array<std::vector<double>, 5> samples;
  std::map<std::string, std::vector<double>> phases;
  RangeClock clock;
  for (int64_t i = -LayerBench::kInputs; i < repeats; ++i) {
    world.barrier();
    clock.take();
    const double forward = milliseconds([&] { bench.forward(); });
    const double backward = milliseconds([&] { bench.backward(); });
    const double update = milliseconds([&] { bench.update(); });
    const std::map<std::string, double> ranges = clock.take();
    double rows = 0;
    for (const char* phase : kRowPhases)
      if (const auto found = ranges.find(phase); found != ranges.end()) rows += found->second;
    const std::array<double, 5> times = {forward, backward, update, forward + backward + update, rows};
    for (size_t j = 0; j < times.size(); ++j) {
      const double sample = slowest(world, times[j]);
      if (i >= 0) samples[j].push_back(sample);
    }
    if (i >= 0)
      for (const auto& [name, time] : ranges) phases[name].push_back(time);
  }
  LayerTimes times = {spread_of(samples[0]), spread_of(samples[1]), spread_of(samples[2]),
                      spread_of(samples[3]), spread_of(samples[4]), {}};
  for (auto& [name, all] : phases) times.phases.emplace_back(name, spread_of(std::move(all)));
  std::ranges::stable_sort(times.phases, std::greater(), [](const auto& phase) { return phase.second.median; });
  return times;
}

nlohmann::json to_json(const LayerTimes& times) {
  nlohmann::json phases = nlohmann::json::object();
  for (const auto& [name, ms] : times.phases) phases[name] = to_json(ms);
  return {{"phases_ms", phases},
          {"ms", to_json(times.step)},
          {"forward_ms", to_json(times.forward)},
          {"backward_ms", to_json(times.backward)},
          {"update_ms", to_json(times.update)},
          {"rows_ms", to_json(times.rows)}};
}

int64_t distinct_rows(Matrix<const int32_t> slots) {
  return distinct({slots.begin(), slots.end()});
}

double mean_distinct_sub_keys(Matrix<const int32_t> slots, int64_t heads, int64_t sub_keys) {
  const int64_t neighbours = slots.size(1) / heads;
  int64_t total = 0;
  for (int64_t begin = 0; begin < slots.count(); begin += neighbours) {
    std::vector<int32_t> first;
    std::vector<int32_t> second;
    for (int64_t i = begin; i < begin + neighbours; ++i) {
      first.push_back(slots.data()[i] / static_cast<int32_t>(sub_keys));
      second.push_back(slots.data()[i] % static_cast<int32_t>(sub_keys));
    }
    total += distinct(std::move(first)) + distinct(std::move(second));
  }
  const int64_t lists = slots.size(0) * heads * 2;
  return lists == 0 ? 0 : static_cast<double>(total) / static_cast<double>(lists);
}

// Collective.
void bench_layer(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report) {
  const ProcessMemory before = process_memory();
  LayerBench bench(config, world, {});
  const LayerTimes times = time_layer(bench, world, options.repeats);
  const auto peak = slowest(world, static_cast<double>(process_memory().peak));
  const int64_t rows = distinct_rows(bench.layer().slots());
  report.line(fmt::format("{} tokens of width {} read {} rows; {}, {} each", bench.tokens(), bench.input().size(1),
                          rows, counted(world.size(), "rank"), counted(threads(), "thread")));
  for (const auto& [name, ms] :
       {std::pair{"forward", times.forward}, std::pair{"backward", times.backward}, std::pair{"update", times.update},
        std::pair{"whole step", times.step}, std::pair{"  of it rows", times.rows}})
    report.line(fmt::format("{:<13}{:>23} ms", name, to_text(ms)));
  report.line("\nphases within these steps, on this rank; some contain others");
  for (const auto& [name, ms] : times.phases) report.line(fmt::format("{:<25}{:>23} ms", name, to_text(ms)));
  report.line(fmt::format("peak memory of a rank  {}, {} of it before the layer", bytes_text(peak),
                          bytes_text(static_cast<double>(before.resident))));
  report.figures.update(to_json(times));
  report.figures["distinct_rows"] = rows;
  report.figures["memory"] = {{"peak_bytes", peak}, {"before_bytes", before.resident}};
}

}  // namespace pkmesh
