// SPDX-License-Identifier: Apache-2.0
// Layers against what PyTorch computed for the same parameters and inputs (tests/golden/make_golden.py).
#include "tests/golden/golden.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "comm/self.h"
#include "layers/block.h"
#include "layers/memory/batch_norm.h"
#include "layers/memory/memory_layer.h"

namespace pkmesh {
namespace {

constexpr double kTolerance = 1e-5;

// A layer registers its parameters under "layer."; the file has them without.
constexpr std::string_view kName = "layer";

std::string in_file(const Parameters::Entry& entry) {
  return entry.name.substr(kName.size() + 1);
}

std::span<float> part(std::span<float> all, const Parameters::Entry& entry) {
  return all.subspan(static_cast<size_t>(entry.offset), static_cast<size_t>(entry.count));
}

void load_parameters(const golden::File& file, Parameters& parameters) {
  parameters.allocate({}, 1);
  for (const auto& entry : parameters.entries()) {
    ASSERT_EQ(entry.shape, file.shape(in_file(entry))) << entry.name;
    std::ranges::copy(file.floats(in_file(entry)), part(parameters.values(), entry).begin());
  }
}

// Some gradients are 0 but for rounding (of a bias in front of a BatchNorm, of the keys' bias in attention).
void expect_gradients(const golden::File& file, const Parameters& parameters, double tolerance) {
  for (const auto& entry : parameters.entries())
    golden::expect_close(entry.name, part(parameters.gradients(), entry), file.floats(in_file(entry) + ".gradient"),
                         tolerance, /*floor=*/1.0);
}

// The tensor as (rows, width of its last dimension).
Matrix<const float> matrix(const golden::File& file, const std::string& name) {
  const auto data = file.floats(name);
  const int64_t width = file.shape(name).back();
  return Matrix<const float>(data.data(), std::ssize(data) / width, width);
}

Buffer<float> dense(const RowGradients& gradients, int64_t rows) {
  const int64_t width = gradients.d_output.size(1);
  Buffer<float> result({}, rows * width);
  for (int64_t u = 0; u < gradients.rows.count(); ++u)
    for (int64_t c = gradients.offsets[u]; c < gradients.offsets[u + 1]; ++c)
      for (int64_t i = 0; i < width; ++i)
        result.data()[gradients.rows[u] * width + i] +=
            gradients.weights[c] * gradients.d_output(gradients.sources[c], i);
  return result;
}

struct Fixture {
  Stream stream;
  Arena arena;
  SelfCommunicator world;
  Parameters parameters;
  StepContext context{stream, arena, world};
};

TEST(Golden, BatchNorm) {
  const golden::File file("batch_norm");
  Fixture f;
  const auto x = matrix(file, "x");
  SyncBatchNorm layer(f.parameters, std::string(kName), x.size(1));
  load_parameters(file, f.parameters);
  for (const auto& state : f.parameters.state_entries())
    std::ranges::copy(file.floats(in_file(state)), part(f.parameters.states(), state).begin());

  auto y = f.arena.take<float>(x.size(0), x.size(1));
  auto dx = f.arena.take<float>(x.size(0), x.size(1));
  layer.forward(f.context, x, y);
  golden::expect_close("y", y.flat(), file.floats("y"), kTolerance);
  for (const auto& state : f.parameters.state_entries())
    golden::expect_close(state.name, part(f.parameters.states(), state), file.floats(in_file(state) + ".after"),
                         kTolerance);
  layer.backward(f.context, matrix(file, "y.gradient"), dx);
  golden::expect_close("dx", dx.flat(), file.floats("x.gradient"), kTolerance);
  expect_gradients(file, f.parameters, kTolerance);

  f.context.training = false;
  layer.forward(f.context, x, y);
  golden::expect_close("y in evaluation", y.flat(), file.floats("y.eval"), kTolerance);
}

TEST(Golden, ProductKeyMemory) {
  const golden::File file("memory");
  Fixture f;
  const auto x = matrix(file, "x");
  const auto& keys = file.shape("keys");  // (heads, 2, n, c / 2)
  const MemoryShape shape = {.width = x.size(1),
                             .heads = keys[0],
                             .neighbours = file.integer("k"),
                             .sub_keys = keys[2],
                             .key_width = 2 * keys[3]};
  const auto values = matrix(file, "values");
  ValueTable table({.name = "values", .slots = values.size(0), .width = values.size(1)}, f.world, {}, 1);
  for (int64_t row = 0; row < values.size(0); ++row) table.write_row(row, values[row].flat());
  MemoryLayer layer(f.parameters, std::string(kName), shape, table);
  load_parameters(file, f.parameters);

  const auto y = layer.forward(f.context, x);
  const std::vector<int64_t> slots(layer.slots().begin(), layer.slots().end());
  const auto expected_slots = file.integers("slots");
  EXPECT_EQ(slots, std::vector<int64_t>(expected_slots.begin(), expected_slots.end()));
  golden::expect_close("weights", layer.weights().flat(), file.floats("weights"), kTolerance);
  golden::expect_close("output", y.flat(), file.floats("output"), kTolerance);
  for (const auto& state : f.parameters.state_entries())
    golden::expect_close(state.name, part(f.parameters.states(), state), file.floats(in_file(state) + ".after"),
                         kTolerance);

  auto dx = f.arena.take<float>(x.size(0), x.size(1));
  layer.backward(f.context, matrix(file, "output.gradient"), dx);
  golden::expect_close("dx", dx.flat(), file.floats("x.gradient"), kTolerance);
  expect_gradients(file, f.parameters, kTolerance);
  golden::expect_close("values", dense(table.row_gradients(f.stream), values.size(0)).span(),
                       file.floats("values.gradient"), kTolerance);
}

void block_equals_torch(const std::string& name, bool pre_norm) {
  const golden::File file(name);
  Fixture f;
  const auto x = matrix(file, "x");  // (sequences * context, d)
  const BlockShape shape = {.width = x.size(1),
                            .heads = file.integer("heads"),
                            .ffn_width = file.shape("ffn.in.bias")[0],
                            .pre_norm = pre_norm};
  Block block(f.parameters, std::string(kName), shape, [](bool) { return nullptr; });
  load_parameters(file, f.parameters);
  f.context.sequence_length = file.shape("x")[1];
  const auto y = block.forward(f.context, x);
  golden::expect_close("y", y.flat(), file.floats("y"), kTolerance);
  auto gradient = f.arena.take<float>(x.size(0), x.size(1));
  std::ranges::copy(file.floats("y.gradient"), gradient.begin());
  block.backward(f.context, gradient);
  golden::expect_close("dx", gradient.flat(), file.floats("x.gradient"), kTolerance);
  expect_gradients(file, f.parameters, kTolerance);
}

TEST(Golden, PostNormBlock) {
  block_equals_torch("block_post_norm", false);
}
TEST(Golden, PreNormBlock) {
  block_equals_torch("block_pre_norm", true);
}

}  // namespace
}  // namespace pkmesh
