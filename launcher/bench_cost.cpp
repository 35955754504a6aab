// SPDX-License-Identifier: Apache-2.0
#include "launcher/bench_cost.h"

#include <algorithm>
#include <cmath>

namespace pkmesh {
namespace {

constexpr double kFloat = 4;
constexpr double kSelection = 8;      // row and weight
constexpr double kContribution = 8;   // weight and source
constexpr double kRowEntry = 4 + 8;   // of the sorted rows: row and offset
constexpr double kUsageCounters = 8;  // count and weight

double real(int64_t count) {
  return static_cast<double>(count);
}

double total_flops(const std::vector<Cost>& phases) {
  double flops = 0;
  for (const Cost& phase : phases) flops += phase.flops;
  return flops;
}

}  // namespace

LookupShape lookup_shape(const MemorySite& site, const RowAdamOptions& rows, int64_t tokens) {
  LookupShape shape;
  shape.tokens = tokens;
  shape.width = site.shape.width;
  shape.heads = site.shape.heads;
  shape.neighbours = site.shape.neighbours;
  shape.sub_keys = site.shape.sub_keys;
  shape.key_width = site.shape.key_width;
  shape.value_width = site.table.width;
  shape.row_bytes = site.table.width * bytes_of(site.table.type);
  shape.moment_bytes = RowOptimizer::bytes_per_row(rows, site.table.width);
  shape.batch_norm = site.shape.query_norm == QueryNorm::kBatchNorm;
  shape.gated = site.shape.output == MemoryOutput::kSwilu;
  shape.distinct_rows = real(shape.neighbours);
  shape.distinct_sub_keys = std::ceil(std::sqrt(real(shape.neighbours)));
  return shape;
}

namespace cost {

Cost linear_forward(int64_t tokens, int64_t in, int64_t out) {
  const double t = real(tokens);
  return {.streamed = kFloat * (t * real(in + out) + real(in + 1) * real(out)), .flops = 2 * t * real(in) * real(out)};
}

Cost linear_backward(int64_t tokens, int64_t in, int64_t out) {
  const double t = real(tokens);
  const double weights = real(in) * real(out);
  // x, dy read, dx written; the weight read; gradients of weight and bias read and written.
  return {.streamed = kFloat * (t * real(2 * in + out) + 3 * weights + 2 * real(out)),
          .flops = 4 * t * weights + t * real(out)};
}

Cost batch_norm_forward(int64_t tokens, int64_t features) {
  const double x = real(tokens) * real(features);
  return {.streamed = kFloat * 4 * x, .flops = 8 * x};  // read for the statistics, read again; y and normal written
}

Cost batch_norm_backward(int64_t tokens, int64_t features) {
  const double x = real(tokens) * real(features);
  return {.streamed = kFloat * 5 * x, .flops = 8 * x};  // normal and dy read for the sums, read again; dx written
}

Cost select_forward(const LookupShape& s) {
  const double keys = real(s.features()) * real(s.sub_keys);
  return {.streamed = kFloat * (real(s.tokens * s.features()) + keys + 2 * real(s.selections())),
          .flops = 2 * real(s.tokens) * keys};
}

Cost select_backward(const LookupShape& s) {
  const double queries = real(s.tokens * s.features());
  const double keys = real(s.features()) * real(s.sub_keys);
  // queries read, their gradients written; keys read, their gradients read and written; slots, weights, dweights read.
  return {.streamed = kFloat * (2 * queries + 3 * keys + 3 * real(s.selections())),
          .flops = 4 * s.distinct_sub_keys * queries};
}

Cost plan_alone(const LookupShape& s) {
  return {.streamed = 2 * kSelection * real(s.selections()) + 4 * real(s.tokens + 1)};
}

Cost count_usage(const LookupShape& s) {
  return {.streamed = kSelection * real(s.selections()) + 2 * kUsageCounters * s.distinct_rows,
          .flops = 2 * real(s.selections())};
}

Cost gather(const LookupShape& s) {
  return {.streamed = kSelection * real(s.selections()) + kFloat * real(s.tokens * s.value_width),
          .rows_read = s.distinct_rows * real(s.row_bytes),
          .flops = 2 * real(s.selections()) * real(s.value_width)};
}

Cost weight_gradients(const LookupShape& s) {
  Cost cost = gather(s);  // the same rows against the output's gradients
  cost.streamed += kFloat * real(s.selections());
  if (s.summed) {
    cost.streamed += kFloat * s.distinct_rows * real(s.value_width);
    cost.flops *= 2;
  }
  return cost;
}

namespace {
// What is pending until the update: contributions to the rows' gradients and what they are taken from, one of each per
// row if summed.
double contributions(const LookupShape& s) {
  return s.summed ? s.distinct_rows : real(s.selections());
}
double sources(const LookupShape& s) {
  return s.summed ? s.distinct_rows : real(s.tokens);
}
}  // namespace

Cost sort_rows(const LookupShape& s) {
  return {.streamed = (kSelection + kContribution) * contributions(s) + kRowEntry * s.distinct_rows};
}

Cost row_bound(const LookupShape& s) {
  const double outputs = sources(s) * real(s.value_width);
  return {.streamed = kFloat * (outputs + contributions(s)), .flops = 2 * outputs + contributions(s)};
}

Cost row_norms(const LookupShape& s) {
  const double sums = s.summed ? 0 : 2 * real(s.selections()) * real(s.value_width);
  return {.streamed = kContribution * contributions(s) + kFloat * sources(s) * real(s.value_width) +
                      kRowEntry * s.distinct_rows,
          .flops = sums + 2 * s.distinct_rows * real(s.value_width)};
}

Cost row_update(const LookupShape& s) {
  constexpr double kAdam = 13;
  Cost cost = row_norms(s);
  cost.rows_updated = 2 * s.distinct_rows * real(s.row_bytes + s.moment_bytes);
  cost.flops += (kAdam - 2) * s.distinct_rows * real(s.value_width);  // Adam in the place of the norm
  return cost;
}

Cost row_update_in_backward(const LookupShape& s) {
  Cost cost = row_update(s);
  cost.streamed += kFloat * real(s.selections());
  cost.flops += 2 * real(s.selections()) * real(s.value_width);
  return cost;
}

Cost attention_forward(int64_t sequences, int64_t context, int64_t width) {
  const double x = real(sequences * context) * real(width);
  // Two products with the (context + 1) / 2 keys that a query sees on average.
  return {.streamed = kFloat * 4 * x, .flops = 2 * x * real(context + 1)};
}

Cost attention_backward(int64_t sequences, int64_t context, int64_t width) {
  const double x = real(sequences * context) * real(width);
  // qkv, output, its gradient read; gradient of qkv written. Five products: scores again, dP, dV, dQ, dK.
  return {.streamed = kFloat * 8 * x, .flops = 5 * x * real(context + 1)};
}

Cost layer_norm_forward(int64_t tokens, int64_t width) {
  const double x = real(tokens) * real(width);
  return {.streamed = kFloat * 4 * x, .flops = 8 * x};  // two summands read; sum and y written
}

Cost layer_norm_backward(int64_t tokens, int64_t width) {
  const double x = real(tokens) * real(width);
  return {.streamed = kFloat * 4 * x, .flops = 13 * x};  // x, dy and the skipping gradient read; dx written
}

Cost gelu_forward(int64_t tokens, int64_t width) {
  const double x = real(tokens) * real(width);
  return {.streamed = kFloat * 2 * x, .flops = 4 * x};
}

Cost gelu_backward(int64_t tokens, int64_t width) {
  const double x = real(tokens) * real(width);
  return {.streamed = kFloat * 3 * x, .flops = 8 * x};
}

Cost cross_entropy(int64_t tokens, int64_t width, int64_t vocabulary) {
  const double x = real(tokens) * real(width);
  const double embedding = real(vocabulary) * real(width);
  // x read, dx written; the embedding read, its gradient read and written. Three products; exponentials and sums.
  return {.streamed = kFloat * (2 * x + 3 * embedding),
          .flops = 6 * x * real(vocabulary) + 4 * real(tokens) * real(vocabulary)};
}

Cost adam(int64_t parameters) {
  return {.streamed = kFloat * 7 * real(parameters), .flops = 13 * real(parameters)};  // 4 read, 3 written
}

std::vector<Cost> layer_forward(const LookupShape& s) {
  std::vector<Cost> phases = {linear_forward(s.tokens, s.width, s.features()), select_forward(s), plan_alone(s),
                              count_usage(s), gather(s)};
  if (s.batch_norm) phases.push_back(batch_norm_forward(s.tokens, s.features()));
  if (s.gated) {
    phases.push_back(linear_forward(s.tokens, s.width, s.value_width));
    phases.push_back(linear_forward(s.tokens, s.value_width, s.width));
  }
  return phases;
}

std::vector<Cost> layer_backward(const LookupShape& s) {
  std::vector<Cost> phases = {select_backward(s), linear_backward(s.tokens, s.width, s.features())};
  if (s.summed)
    phases.push_back(weight_gradients(s));
  else
    phases.insert(phases.end(), {sort_rows(s), row_bound(s), row_update_in_backward(s)});
  if (s.batch_norm) phases.push_back(batch_norm_backward(s.tokens, s.features()));
  if (s.gated) {
    phases.push_back(linear_backward(s.tokens, s.width, s.value_width));
    phases.push_back(linear_backward(s.tokens, s.value_width, s.width));
  }
  return phases;
}

std::vector<Cost> layer_update(const LookupShape& s, int64_t dense_parameters) {
  std::vector<Cost> phases = {adam(dense_parameters)};
  if (s.summed) phases.insert(phases.end(), {sort_rows(s), row_bound(s), row_update(s)});
  return phases;
}

double step_flops(const TransformerShape& shape, int64_t sequences) {
  const int64_t tokens = sequences * shape.context;
  const int64_t d = shape.block.width;
  const auto products = [&](int64_t in, int64_t out) { return 6 * real(tokens) * real(in) * real(out); };
  double flops = products(d, shape.vocabulary);
  flops +=
      real(shape.layers) * (products(d, 3 * d) + products(d, d) + attention_forward(sequences, shape.context, d).flops +
                            attention_backward(sequences, shape.context, d).flops);
  int64_t feed_forwards = shape.layers;
  for (const MemorySite& site : shape.memories) {
    if (!site.after) --feed_forwards;
    const LookupShape lookup = lookup_shape(site, RowAdamOptions{}, tokens);
    flops += total_flops(layer_forward(lookup)) + total_flops(layer_backward(lookup));
  }
  return flops + real(feed_forwards) * 2 * products(d, shape.block.ffn_width);
}

}  // namespace cost
}  // namespace pkmesh
