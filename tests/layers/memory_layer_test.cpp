// SPDX-License-Identifier: Apache-2.0
// The whole layer over 1 to 3 ranks against the judge, which sees all tokens at once.
#include "layers/memory/memory_layer.h"

#include <mutex>

#include "comm/self.h"
#include "comm/thread.h"
#include "tests/reference/memory_layer.h"
#include "tests/reference/tensor.h"

namespace pkmesh {
namespace {

using namespace reference;

constexpr int64_t kTokens = 14;
constexpr double kTolerance = 2e-5;
constexpr double kGradientTolerance = 2e-4;

struct Config {
  MemoryShape shape;
  int64_t value_width;
  int64_t slots() const { return shape.sub_keys * shape.sub_keys; }
};

struct Passed {
  std::vector<float> out, dx;      // (T, d)
  std::vector<int32_t> slots;      // (T, H*k)
  std::vector<float> dparameters;  // summed over the ranks
  std::vector<float> dvalues;      // (N, dv)
};

std::pair<int64_t, int64_t> share(int rank, int ranks) {  // with three ranks the middle one has no tokens
  if (ranks == 3)
    return rank == 0 ? std::pair<int64_t, int64_t>{0, 5} : std::pair<int64_t, int64_t>{5, rank == 1 ? 5 : kTokens};
  return {kTokens * rank / ranks, kTokens * (rank + 1) / ranks};
}

void add_row_gradients(ValueTable& table, Passed& run) {
  Stream stream;
  const RowGradients& gradients = table.row_gradients(stream);
  const int64_t width = gradients.d_output.size(1);
  for (int64_t u = 0; u < gradients.rows.count(); ++u)
    for (int64_t c = gradients.offsets[u]; c < gradients.offsets[u + 1]; ++c)
      for (int64_t j = 0; j < width; ++j)
        run.dvalues[table.global_row(gradients.rows[u]) * width + j] +=
            gradients.weights[c] * gradients.d_output(gradients.sources[c], j);
}

std::string short_name(const Parameters::Entry& entry) {
  return entry.name.substr(std::string("memory.").size());
}

// Forward and backward with the tensors' values in place of the initial ones.
Passed run_layer(const Config& config, const MemoryTensors& tensors, const Numbers& dy, int ranks) {
  const int64_t d = config.shape.width;
  const int64_t selections = config.shape.heads * config.shape.neighbours;
  Passed all{std::vector<float>(dy.size()),
             std::vector<float>(dy.size()),
             std::vector<int32_t>(kTokens * selections),
             {},
             std::vector<float>(config.slots() * config.value_width)};
  std::mutex mutex;
  run_ranks(ranks, [&](Communicator& world) {
    Stream stream;
    Arena arena;
    StepContext context{stream, arena, world};
    Parameters parameters;
    ValueTable table({"table", config.slots(), config.value_width}, world, {}, 1);
    MemoryLayer layer(parameters, "memory", config.shape, table);
    parameters.allocate({}, 1);
    for (const auto& entry : parameters.entries())
      std::ranges::copy(tensors.at(short_name(entry)), parameters.values().begin() + entry.offset);
    for (int64_t local = 0; local < table.local_rows(); ++local) {
      const auto* row = tensors.at("values").data() + table.global_row(local) * config.value_width;
      table.write_row(local, std::vector<float>(row, row + config.value_width));
    }
    const auto [begin, end] = share(world.rank(), ranks);
    const int64_t tokens = end - begin;
    const Numbers& x = tensors.at("x");
    Tensor<float> my_x(Numbers(x.begin() + begin * d, x.begin() + end * d));
    Tensor<float> my_dy(Numbers(dy.begin() + begin * d, dy.begin() + end * d));
    Tensor<float> dx(tokens * d);
    const Matrix<float> out = layer.forward(context, my_x.view(tokens, d));
    const std::vector<float> out_values(out.begin(), out.end());
    const std::vector<int32_t> slots(layer.slots().begin(), layer.slots().end());
    layer.backward(context, my_dy.view(tokens, d), dx.view(tokens, d));

    const std::scoped_lock lock(mutex);
    std::ranges::copy(out_values, all.out.begin() + begin * d);
    std::ranges::copy(slots, all.slots.begin() + begin * selections);
    std::ranges::copy(dx.values(), all.dx.begin() + begin * d);
    all.dparameters.resize(static_cast<size_t>(parameters.count()));
    for (int64_t i = 0; i < parameters.count(); ++i) all.dparameters[i] += parameters.gradients()[i];
    add_row_gradients(table, all);
  });
  return all;
}

MemoryTensors draw_tensors(const Config& config) {
  const MemoryShape& shape = config.shape;
  const int64_t queries = shape.heads * shape.key_width;
  const int64_t norm = shape.query_norm == QueryNorm::kLayerNorm ? shape.key_width / 2 : queries;
  return {{"x", normals("x", kTokens * shape.width)},
          {"query.weight", normals("wq", queries * shape.width, 0.5)},
          {"query.bias", normals("bq", queries, 0.5)},
          {"query_norm.weight", normals("wn", norm)},
          {"query_norm.bias", normals("bn", norm)},
          {"keys", normals("keys", queries * shape.sub_keys, 0.7)},
          {"values", normals("values", config.slots() * config.value_width)},
          {"gate.weight", normals("w1", config.value_width * shape.width, 0.5)},
          {"out.weight", normals("w2", config.value_width * shape.width, 0.5)}};
}

void expect_all_gradients(const Config& config, const MemoryTensors& tensors, const Numbers& dy, const Passed& run) {
  const auto check = [&](const std::string& name, const float* data, int64_t count) {
    Tensor<float> gradient(Numbers(data, data + count));
    const auto loss = [&](const Numbers& at) {
      MemoryTensors moved = tensors;
      moved[name] = at;
      return dot(memory_layer(config.shape, config.value_width, moved, run.slots), dy);
    };
    expect_gradient(name, gradient, tensors.at(name), loss, kGradientTolerance, 40);
  };
  check("x", run.dx.data(), std::ssize(run.dx));
  check("values", run.dvalues.data(), std::ssize(run.dvalues));
  Parameters parameters;
  SelfCommunicator self;
  ValueTable table({"table", config.slots(), config.value_width}, self, {}, 1);
  const MemoryLayer layer(parameters, "memory", config.shape, table);
  for (const auto& entry : parameters.entries())
    check(short_name(entry), run.dparameters.data() + entry.offset, entry.count);
}

// The slots are the best ones: no slot that was left out scores more than one that was taken.
void expect_best_slots(const Config& config, const MemoryTensors& tensors, const Passed& run) {
  const MemoryShape& shape = config.shape;
  const Numbers queries = memory_queries(shape, tensors);
  const View<const double, 3> q(queries.data(), kTokens, shape.heads, shape.key_width);
  const View<const double, 4> keys(tensors.at("keys").data(), shape.heads, 2, shape.sub_keys, shape.key_width / 2);
  for (int64_t token = 0; token < kTokens; ++token)
    for (int64_t head = 0; head < shape.heads; ++head) {
      const auto scores = slot_scores(q, keys, token, head);
      const auto best = best_slots(scores, shape.neighbours);
      for (int64_t i = 0; i < shape.neighbours; ++i) {
        const int32_t slot = run.slots[(token * shape.heads + head) * shape.neighbours + i];
        EXPECT_NEAR(scores[slot], scores[best[i]], 1e-4);
      }
    }
}

class MemoryLayers : public testing::TestWithParam<std::tuple<QueryNorm, MemoryOutput>> {};

TEST_P(MemoryLayers, EqualTheJudgeOnAnyWorld) {
  const auto [norm, output] = GetParam();
  Config config;
  config.shape = {
      .width = 6, .heads = 3, .neighbours = 4, .sub_keys = 7, .key_width = 10, .query_norm = norm, .output = output};
  config.value_width = output == MemoryOutput::kPlain ? 6 : 9;
  const MemoryTensors tensors = draw_tensors(config);
  const Numbers dy = normals("dy", kTokens * config.shape.width);
  for (const int ranks : {1, 2, 3}) {
    const Passed run = run_layer(config, tensors, dy, ranks);
    expect_best_slots(config, tensors, run);
    Tensor<float> out(Numbers(run.out.begin(), run.out.end()));
    expect_near("output", out, memory_layer(config.shape, config.value_width, tensors, run.slots), kTolerance);
    expect_all_gradients(config, tensors, dy, run);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, MemoryLayers,
                         testing::Combine(testing::Values(QueryNorm::kNone, QueryNorm::kBatchNorm,
                                                          QueryNorm::kLayerNorm),
                                          testing::Values(MemoryOutput::kPlain, MemoryOutput::kSwilu)));

TEST(MemoryLayer, SharesATable) {
  SelfCommunicator world;
  Stream stream;
  Arena arena;
  StepContext context{stream, arena, world};
  Parameters parameters;
  ValueTable table({"table", 9, 4}, world, {}, 1);
  const MemoryShape shape{.width = 4, .heads = 1, .neighbours = 2, .sub_keys = 3, .key_width = 4};
  MemoryLayer first(parameters, "first", shape, table);
  MemoryLayer second(parameters, "second", shape, table);
  parameters.allocate({}, 1);
  Tensor<float> x(normals("x", 20));
  first.forward(context, x.view(5, 4));
  second.forward(context, x.view(5, 4));
  Tensor<float> dx(20);
  second.backward(context, x.view(5, 4), dx.view(5, 4));
  first.backward(context, x.view(5, 4), dx.view(5, 4));
  EXPECT_EQ(table.row_gradients(stream).weights.count(), 2 * 5 * 2) << "both layers' selections are pending";
  EXPECT_EQ(table.row_gradients(stream).d_output.size(0), 2 * 5);
}

TEST(MemoryLayer, AllocatesNothingInASteadyStep) {
  run_ranks(2, [](Communicator& world) {
    Stream stream;
    Arena arena;
    StepContext context{stream, arena, world};
    Parameters parameters;
    ValueTable table({"table", 49, 6}, world, {}, 1);
    MemoryLayer layer(parameters, "memory", {.width = 6, .heads = 2, .neighbours = 3, .sub_keys = 7, .key_width = 8},
                      table);
    parameters.allocate({}, 1);
    Tensor<float> x(normals("x", 24));
    Tensor<float> dx(24);
    int64_t growths = 0;
    const float* gradients = nullptr;
    for (int step = 0; step < 4; ++step) {
      arena.reset();
      layer.forward(context, x.view(4, 6));
      layer.backward(context, x.view(4, 6), dx.view(4, 6));
      if (step == 2) {
        growths = arena.growths();
        gradients = table.row_gradients(stream).d_output.data();
      }
      if (step == 3) {
        EXPECT_EQ(table.row_gradients(stream).d_output.data(), gradients);
      }
      table.forget_pending();
    }
    EXPECT_EQ(arena.growths(), growths);
  });
}

TEST(MemoryLayer, SaysWhatDoesNotFit) {
  SelfCommunicator world;
  Parameters parameters;
  ValueTable table({"table", 49, 6}, world, {}, 1);
  const MemoryShape good{.width = 6, .heads = 2, .neighbours = 3, .sub_keys = 7, .key_width = 8};
  const auto expect_error = [&](const MemoryShape& shape) {
    EXPECT_THROW(MemoryLayer(parameters, "memory", shape, table), InternalError);
  };
  auto bad = good;
  bad.neighbours = 8;
  expect_error(bad);
  bad = good;
  bad.sub_keys = 8;
  expect_error(bad);
  bad = good;
  bad.key_width = 7;
  expect_error(bad);
  bad = good;
  bad.width = 8;
  expect_error(bad);
}

}  // namespace
}  // namespace pkmesh
