// SPDX-License-Identifier: Apache-2.0
// `pkmesh bench ops`: what the machine could do, then each phase of a step against it.
#include <fmt/format.h>

#include "launcher/bench.h"
#include "launcher/bench_layer.h"
#include "launcher/memory_plan.h"
#include "layers/attention.h"
#include "layers/cross_entropy.h"
#include "layers/gelu.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/memory/select.h"
#include "runtime/parallel.h"
#include "runtime/process_memory.h"

namespace pkmesh {
namespace {

// Lines of the table, in the order in which they are measured.
class PhaseTable {
 public:
  PhaseTable(const Ceilings& ceilings, int repeats, BenchReport& report)
      : ceilings_(ceilings), repeats_(repeats), report_(report) {}

  void section(const std::string& title) {
    report_.line("");
    report_.line(fmt::format("{:<28}{:>24}{:>10}{:>10}{:>9}{:>10}{:>10}{:>9}", title, "ms (min-max)", "MiB", "GFLOP",
                             "GB/s", "GFLOP/s", "floor ms", "of floor"));
  }

  template <class Work>
  void phase(const std::string& name, const Cost& cost, const Work& work) {
    line(name, {cost}, measure(repeats_, work));
  }

  void line(const std::string& name, const std::vector<Cost>& phases, const Spread& ms) {
    double bytes = 0;
    double flops = 0;
    for (const Cost& cost : phases) {
      bytes += cost.bytes();
      flops += cost.flops;
    }
    const double floor = ceilings_.floor_ms(phases);
    const double per_ms = 1e-6 / ms.median;  // to 1e9 per second
    report_.line(fmt::format("{:<28}{:>24}{:>10.2f}{:>10.3f}{:>9.1f}{:>10.1f}{:>10.3f}{:>8.0f}%", name, to_text(ms),
                             bytes / (1 << 20), flops / 1e9, bytes * per_ms, flops * per_ms, floor,
                             100 * floor / ms.median));
    report_.figures["phases"].push_back({{"name", name},
                                         {"ms", to_json(ms)},
                                         {"bytes", bytes},
                                         {"flops", flops},
                                         {"floor_ms", floor},
                                         {"of_floor", floor / ms.median}});
  }

 private:
  const Ceilings& ceilings_;
  int repeats_;
  BenchReport& report_;
};

// Buffers full of random numbers, as long as the bench lives.
class Inputs {
 public:
  explicit Inputs(Device device) : device_(device) {}
  Matrix<float> matrix(int64_t rows, int64_t columns, float scale = 1.0F) {
    buffers_.emplace_back(device_, rows * columns);
    const auto& buffer = buffers_.back();
    Random(3, "bench inputs", std::ssize(buffers_)).normals(0, buffer.count(), scale, buffer.data());
    return Matrix<float>(buffer.data(), rows, columns);
  }
  Vector<float> vector(int64_t count) {
    const Matrix<float> row = matrix(1, count);
    return row[0];
  }

 private:
  Device device_;
  std::vector<Buffer<float>> buffers_;
};

void time_query(LayerBench& bench, const LookupShape& s, int repeats, PhaseTable& table) {
  Inputs inputs({});
  const int64_t features = s.features();
  const auto weight = inputs.matrix(features, s.width);
  const auto dweight = inputs.matrix(features, s.width);
  const auto bias = inputs.vector(features);
  const auto dbias = inputs.vector(features);
  const auto queries = inputs.matrix(s.tokens, features);
  const auto dqueries = inputs.matrix(s.tokens, features);
  const auto dx = inputs.matrix(s.tokens, s.width);
  Stream& stream = bench.stream();
  table.phase("query forward", cost::linear_forward(s.tokens, s.width, features),
              [&] { linear_forward(stream, bench.input(), weight, bias, queries); });
  table.phase("query backward", cost::linear_backward(s.tokens, s.width, features),
              [&] { linear_backward(stream, bench.input(), weight, dqueries, dx, dweight, dbias); });

  Parameters parameters;
  SyncBatchNorm norm(parameters, "norm", features);
  parameters.allocate({}, 1);
  StepContext context = bench.context();
  const auto normalised = inputs.matrix(s.tokens, features);
  table.phase("batch norm forward", cost::batch_norm_forward(s.tokens, features), [&] {
    const ArenaScope scope(context.arena);
    norm.forward(context, queries, normalised);
  });
  const auto d_raw = inputs.matrix(s.tokens, features);
  const ArenaScope scope(context.arena);
  const Arena::Mark mark = context.arena.mark();
  const Spread backward = measure_after(
      repeats,
      [&] {  // each backward pass belongs to a forward pass, which keeps what it needs
        context.arena.release(mark);
        norm.forward(context, queries, normalised);
      },
      [&] { norm.backward(context, dqueries, d_raw); });
  table.line("batch norm backward", {cost::batch_norm_backward(s.tokens, features)}, backward);
}

void time_select(LayerBench& bench, LookupShape s, PhaseTable& table) {
  Inputs inputs({});
  Stream& stream = bench.stream();
  const int64_t reads = s.heads * s.neighbours;
  const int64_t half = s.key_width / 2;
  const auto by_head = [&](Matrix<float> m) { return m.reshape(s.tokens, s.heads, s.key_width); };
  const auto keys_of = [&](Matrix<float> m) { return m.reshape(s.heads, 2, s.sub_keys, half); };
  const auto queries = by_head(inputs.matrix(s.tokens, s.features()));
  const auto dqueries = by_head(inputs.matrix(s.tokens, s.features()));
  const auto keys = keys_of(inputs.matrix(s.heads * 2 * s.sub_keys, half, 1.0F / std::sqrt(static_cast<float>(half))));
  const auto dkeys = keys_of(inputs.matrix(s.heads * 2 * s.sub_keys, half));
  const ArenaScope scope(bench.arena());
  const auto slots = bench.arena().take<int32_t>(s.tokens, reads);
  const auto weights = bench.arena().take<float>(s.tokens, reads);
  const auto scratch = bench.arena().take<SubKeyGradient>(s.tokens, s.heads, 2, s.neighbours);
  const auto dweights = inputs.matrix(s.tokens, reads);
  table.phase("select forward", cost::select_forward(s),
              [&] { select_forward(stream, queries, keys, slots, weights); });
  s.distinct_sub_keys = mean_distinct_sub_keys(slots, s.heads, s.sub_keys);
  table.phase("select backward", cost::select_backward(s),
              [&] { select_backward(stream, queries, keys, slots, weights, dweights, scratch, dqueries, dkeys); });
}

// What happens to the rows that the layer's last forward pass chose.
void time_rows(LayerBench& bench, const LookupShape& s, int repeats, PhaseTable& table) {
  Inputs inputs({});
  Stream& stream = bench.stream();
  Arena& arena = bench.arena();
  const ArenaScope scope(arena);
  StepContext context = bench.context();
  ValueTable& values = bench.table();
  const Route& route = bench.layer().route();
  RouteCounts counts;
  table.phase("plan (alone)", cost::plan_alone(s), [&] {
    const ArenaScope inner(arena);
    plan_route(stream, arena, context.world, Leg::direct(values.placement()),
               RouteTag("memory", 0, values.shape().slots),
               ask(stream, arena, bench.layer().slots(), bench.layer().weights()), counts);
  });
  table.phase("count usage", cost::count_usage(s), [&] { values.count_usage(stream, route.selections); });
  const auto sums = inputs.matrix(s.tokens, s.value_width);
  table.phase("gather and pool", cost::gather(s),
              [&] { pooled_gather(stream, values.rows(), route.selections, route.pair_offsets, sums); });
  const auto gradients = inputs.matrix(s.tokens, s.value_width);
  const auto dweights = inputs.vector(s.selections());
  const auto prepare = [&] {
    values.forget_pending();
    if (!s.summed) copy(stream, gradients.flat(), values.take_gradients(stream, s.tokens).flat());
  };
  const auto backward = [&] {
    if (s.summed)
      values.backward_by_row(stream, route.selections, route.pair_offsets, gradients, dweights);
    else
      values.backward(context, route.selections, route.pair_offsets, dweights);
  };
  table.line(s.summed ? "dw, row gradients" : "weight gradients (dw)", {cost::weight_gradients(s)},
             measure_after(repeats, prepare, backward));
  table.line("sort by row", {cost::sort_rows(s)},
             measure_after(
                 repeats,
                 [&] {
                   prepare();
                   backward();
                 },
                 [&] { values.row_gradients(stream); }));
  const RowGradients& sorted = values.row_gradients(stream);
  double squares = 0;
  table.phase("row gradients: norms", cost::row_norms(s),
              [&] { bench.rows().add_squares(stream, sorted, Vector<double>(&squares, 1)); });
  table.phase("row gradients: finite?", cost::row_bound(s),
              [&] { bench.rows().add_squares_bound(stream, sorted, Vector<double>(&squares, 1)); });
  int64_t step = 0;
  table.phase("row gradients + update", cost::row_update(s),
              [&] { bench.rows().step(stream, values.rows(), sorted, 1e-3, 1e-4, ++step); });
  if (s.summed) return;
  table.phase("the same and dw at once", cost::row_update_in_backward(s),
              [&] { bench.rows().step(stream, values.rows(), sorted, 1e-3, 1e-4, ++step, dweights); });
}

// The layer as a whole: what its parts do not show, such as copies and what the caches forget between them.
void time_whole_layer(LayerBench& bench, Communicator& world, const LookupShape& s, int repeats, PhaseTable& table) {
  const LayerTimes times = time_layer(bench, world, repeats);
  std::vector<Cost> phases = cost::layer_forward(s);
  const std::vector<Cost> backward = cost::layer_backward(s);
  const std::vector<Cost> update = cost::layer_update(s, bench.dense_parameters());
  table.line("layer forward", phases, times.forward);
  table.line("layer backward", backward, times.backward);
  table.line("layer update", update, times.update);
  phases.insert(phases.end(), backward.begin(), backward.end());
  phases.insert(phases.end(), update.begin(), update.end());
  table.line("layer, whole step", phases, times.step);
}

void time_attention(const TransformerShape& shape, int64_t sequences, Stream& stream, PhaseTable& table) {
  Inputs inputs({});
  const AttentionShape attention = {sequences, shape.context, shape.block.heads};
  const int64_t tokens = attention.tokens();
  const int64_t width = shape.block.width;
  const auto qkv = inputs.matrix(tokens, 3 * width);
  const auto dqkv = inputs.matrix(tokens, 3 * width);
  const auto output = inputs.matrix(tokens, width);
  const auto doutput = inputs.matrix(tokens, width);
  const auto logsumexp = inputs.matrix(shape.block.heads, tokens);
  const Dropout none;
  table.phase("attention forward", cost::attention_forward(sequences, shape.context, width),
              [&] { attention_forward(stream, attention, qkv, none, output, logsumexp); });
  table.phase("attention backward", cost::attention_backward(sequences, shape.context, width),
              [&] { attention_backward(stream, attention, qkv, output, logsumexp, doutput, none, dqkv); });
}

void time_feed_forward(const TransformerShape& shape, int64_t tokens, Stream& stream, PhaseTable& table) {
  Inputs inputs({});
  const int64_t width = shape.block.width;
  const int64_t inner = shape.block.ffn_width;
  const auto x = inputs.matrix(tokens, width);
  const auto dx = inputs.matrix(tokens, width);
  const auto y = inputs.matrix(tokens, inner);
  const auto dy = inputs.matrix(tokens, inner);
  const auto weight = inputs.matrix(inner, width);
  const auto dweight = inputs.matrix(inner, width);
  const auto bias = inputs.vector(inner);
  const auto dbias = inputs.vector(inner);
  table.phase("FFN in, forward", cost::linear_forward(tokens, width, inner),
              [&] { linear_forward(stream, x, weight, bias, y); });
  table.phase("FFN in, backward", cost::linear_backward(tokens, width, inner),
              [&] { linear_backward(stream, x, weight, dy, dx, dweight, dbias); });
  const auto back = weight.reshape(width, inner);
  const auto dback = dweight.reshape(width, inner);
  const auto back_bias = inputs.vector(width);
  const auto dback_bias = inputs.vector(width);
  table.phase("FFN out, forward", cost::linear_forward(tokens, inner, width),
              [&] { linear_forward(stream, y, back, back_bias, dx); });
  table.phase("FFN out, backward", cost::linear_backward(tokens, inner, width),
              [&] { linear_backward(stream, y, back, x, dy, dback, dback_bias); });
  table.phase("GELU forward", cost::gelu_forward(tokens, inner), [&] { gelu_forward(stream, y, dy); });
  const auto dz = inputs.matrix(tokens, inner);
  table.phase("GELU backward", cost::gelu_backward(tokens, inner), [&] { gelu_backward(stream, y, dy, dz); });
}

void time_layer_norm(const TransformerShape& shape, int64_t tokens, Stream& stream, PhaseTable& table) {
  Inputs inputs({});
  constexpr float kEpsilon = 1e-5F;
  const int64_t width = shape.block.width;
  const auto a = inputs.matrix(tokens, width);
  const auto b = inputs.matrix(tokens, width);
  const auto sum = inputs.matrix(tokens, width);
  const auto y = inputs.matrix(tokens, width);
  const auto gamma = inputs.vector(width);
  const auto beta = inputs.vector(width);
  const auto mean = inputs.vector(tokens);
  const auto rstd = inputs.vector(tokens);
  table.phase("layer norm forward", cost::layer_norm_forward(tokens, width),
              [&] { residual_layer_norm_forward(stream, a, b, gamma, beta, kEpsilon, sum, y, mean, rstd); });
  const auto dgamma = inputs.vector(width);
  const auto dbeta = inputs.vector(width);
  const auto dx = inputs.matrix(tokens, width);
  table.phase("layer norm backward", cost::layer_norm_backward(tokens, width),
              [&] { layer_norm_backward(stream, sum, gamma, mean, rstd, a, b, dx, dgamma, dbeta); });
}

void time_cross_entropy(const TransformerShape& shape, int64_t tokens, Stream& stream, PhaseTable& table) {
  const int64_t chunk = logits_chunk(stream.device().kind);  // as the model's
  Inputs inputs({});
  const int64_t width = shape.block.width;
  const auto x = inputs.matrix(tokens, width);
  const auto dx = inputs.matrix(tokens, width);
  const auto embedding = inputs.matrix(shape.vocabulary, width, 1.0F / std::sqrt(static_cast<float>(width)));
  const auto dembedding = inputs.matrix(shape.vocabulary, width);
  const auto scratch = inputs.matrix(std::min(chunk, tokens), shape.vocabulary);
  const auto losses = inputs.vector(tokens);
  std::vector<int32_t> targets(static_cast<size_t>(tokens));
  const Random random(4, "bench targets");
  for (size_t i = 0; i < targets.size(); ++i) targets[i] = static_cast<int32_t>(random.bits(i) % shape.vocabulary);
  const Vector<const int32_t> wanted(targets.data(), tokens);
  table.phase("cross-entropy, training", cost::cross_entropy(tokens, width, shape.vocabulary),
              [&] { cross_entropy_train(stream, x, embedding, wanted, 1e-3F, scratch, losses, dx, dembedding); });
}

void time_adam(const TransformerShape& shape, Stream& stream, PhaseTable& table) {
  Inputs inputs({});
  const int64_t width = shape.block.width;
  const int64_t count = 4 * width * width + 2 * width * shape.block.ffn_width;  // the matrices of one block
  const auto values = inputs.vector(count);
  const auto gradients = inputs.vector(count);
  Adam adam({}, {{0, count}}, AdamOptions{});
  int64_t step = 0;
  table.phase("Adam, one block", cost::adam(count), [&] {
    adam.step(stream, std::span(values.data(), values.end()), std::span(gradients.data(), gradients.end()), 1.0, 1e-4,
              ++step);
  });
}

// Of this machine, when all that the configuration needs will have been written to.
int64_t free_memory(const config::Config& config, const Communicator& world) {
  const ProcessMemory now = process_memory();
  const int64_t planned =
      plan_memory(config, planned_vocabulary(config), world.hosts(), DeviceKind::kCpu).bytes_per_rank();
  return now.machine_available - std::max<int64_t>(planned - now.resident, 0);
}

}  // namespace

void bench_ops(Communicator& world, const config::Config& config, const BenchOptions& options, BenchReport& report) {
  const TransformerShape shape = model_shape(config, planned_vocabulary(config));
  LayerBench bench(config, world, {});
  bench.forward();
  const LookupShape lookup = bench.lookup();

  CeilingSizes sizes = options.ceilings;
  sizes.table_rows = bench.table().local_rows();
  sizes.row_bytes = lookup.row_bytes;
  sizes.table_bytes = std::clamp<int64_t>(free_memory(config, world) / 4, 0, sizes.table_bytes);
  const Ceilings ceilings = measure_ceilings(bench.stream(), sizes, options.repeats);
  report.figures["ceilings"] = to_json(ceilings);
  report.line(to_text(ceilings, sizes));

  PhaseTable table(ceilings, options.repeats, report);
  report.line(fmt::format(
      "\nT {}, d {}, H {}, k {}, n {}, c {}, dv {}: {} rows read by {} selections, {:.1f} of {} "
      "sub-keys per head and half",
      lookup.tokens, lookup.width, lookup.heads, lookup.neighbours, lookup.sub_keys, lookup.key_width,
      lookup.value_width, lookup.distinct_rows, lookup.selections(), lookup.distinct_sub_keys, lookup.sub_keys));
  report.figures["distinct_rows"] = lookup.distinct_rows;
  report.figures["distinct_sub_keys"] = lookup.distinct_sub_keys;
  table.section("memory layer, by phase");
  time_query(bench, lookup, options.repeats, table);
  time_select(bench, lookup, table);
  time_rows(bench, lookup, options.repeats, table);
  table.section("memory layer, whole");
  time_whole_layer(bench, world, lookup, options.repeats, table);
  table.section("the rest of a step");
  const int64_t sequences = config.train().batch();
  time_attention(shape, sequences, bench.stream(), table);
  time_feed_forward(shape, lookup.tokens, bench.stream(), table);
  time_layer_norm(shape, lookup.tokens, bench.stream(), table);
  time_adam(shape, bench.stream(), table);
  time_cross_entropy(shape, lookup.tokens, bench.stream(), table);  // last: it frees most (see Ceilings::memory)
}

}  // namespace pkmesh
