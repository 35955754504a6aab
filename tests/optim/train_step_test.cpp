// SPDX-License-Identifier: Apache-2.0
// One whole training step against PyTorch: a 2-layer post-LN model whose second layer is a memory. Embeddings, blocks,
// product-key memory, loss, all gradients, both clips, Adam, the row optimiser: every tensor before and after.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "comm/self.h"
#include "layers/elementwise.h"
#include "layers/transformer.h"
#include "optim/adam.h"
#include "optim/clipping.h"
#include "optim/schedule.h"
#include "optim/sparse_adam.h"
#include "tests/golden/golden.h"

namespace pkmesh {
namespace {

constexpr double kTolerance = 1e-5;  // of the forward pass and of the tensors after the step
constexpr double kGradients = 1e-4;
const std::string kTable = "layers.1.memory.values";

std::span<float> part(std::span<float> all, const Parameters::Entry& entry) {
  return all.subspan(static_cast<size_t>(entry.offset), static_cast<size_t>(entry.count));
}

TransformerShape shape_of(const golden::File& file) {
  const auto& keys = file.shape("layers.1.memory.keys.before");  // (heads, 2, n, c / 2)
  const auto& values = file.shape(kTable + ".before");
  const int64_t width = values[1];
  MemorySite site;
  site.layer = 1;
  site.shape = {
      .width = width, .heads = keys[0], .neighbours = file.integer("k"), .sub_keys = keys[2], .key_width = 2 * keys[3]};
  site.table = {.name = kTable, .slots = values[0], .width = width};
  return {.vocabulary = file.shape("tokens.weight.before")[0],
          .context = file.shape("positions.weight.before")[0],
          .layers = 2,
          .block = {.width = width,
                    .heads = file.integer("heads"),
                    .ffn_width = file.shape("layers.0.ffn.in.bias.before")[0]},
          .embedding_norm = true,
          .memories = {site}};
}

std::vector<float> all_rows(const ValueTable& table) {
  const int64_t width = table.shape().width;
  std::vector<float> rows(static_cast<size_t>(table.local_rows() * width));
  for (int64_t row = 0; row < table.local_rows(); ++row)
    table.read_row(row, std::span(rows).subspan(static_cast<size_t>(row * width), static_cast<size_t>(width)));
  return rows;
}

std::vector<int32_t> narrow(std::span<const int64_t> ids) {
  return {ids.begin(), ids.end()};
}

class TrainStep : public ::testing::Test {
 protected:
  TrainStep() : model_(shape_of(file_), parameters_, world_, {}, 1), table_(*model_.tables().front()) {
    parameters_.allocate({}, 1);
    for (const auto& entry : parameters_.entries()) {
      EXPECT_EQ(entry.shape, file_.shape(entry.name + ".before")) << entry.name;
      std::ranges::copy(file_.floats(entry.name + ".before"), part(parameters_.values(), entry).begin());
    }
    const auto rows = file_.floats(kTable + ".before");
    const auto width = static_cast<size_t>(table_.shape().width);
    for (int64_t row = 0; row < table_.local_rows(); ++row)
      table_.write_row(row, rows.subspan(static_cast<size_t>(row) * width, width));
  }

  // The mean loss; leaves the gradients where they belong.
  double forward_backward() {
    auto inputs = narrow(file_.integers("input_tokens"));
    auto targets = narrow(file_.integers("target_tokens"));
    const int64_t sequences = file_.shape("input_tokens")[0];
    const int64_t length = file_.shape("input_tokens")[1];
    StepContext context{stream_, arena_, world_, length};
    const auto losses = model_.losses_and_gradients(context, Matrix<const int32_t>(inputs.data(), sequences, length),
                                                    Matrix<const int32_t>(targets.data(), sequences, length),
                                                    1.0F / static_cast<float>(inputs.size()));
    double sum = 0;
    for (const float loss : losses) sum += loss;
    return sum / static_cast<double>(inputs.size());
  }

  // The parameters of the dense store, by name, beside what torch has for them.
  void expect_dense(std::span<float> actual, const std::string& suffix, double tolerance, double floor) {
    for (const auto& entry : parameters_.entries())
      golden::expect_close(entry.name + suffix, part(actual, entry), file_.floats(entry.name + suffix), tolerance,
                           floor);
  }

  golden::File file_{"train_step"};
  Stream stream_;
  Arena arena_;
  SelfCommunicator world_;
  Parameters parameters_;
  Transformer model_;
  ValueTable& table_;
};

TEST_F(TrainStep, EqualsTorchInEveryTensor) {
  EXPECT_NEAR(forward_backward(), file_.scalar("loss"), 1e-5 * file_.scalar("loss"));
  expect_dense(parameters_.gradients(), ".gradient", kGradients, /*floor=*/1e-2);

  const RowAdamOptions row_options = {.beta1 = 0.9, .beta2 = 0.999, .eps = file_.scalar("adam_eps")};
  RowOptimizer row_optimizer({}, kTable, table_.placement(), 0, table_.shape().width, row_options, 1);
  const RowGradients& row_gradients = table_.row_gradients(stream_);
  double dense_squares = 0;
  add_sum_of_squares(stream_, Vector<const float>(parameters_.gradients().data(), parameters_.count()),
                     Vector<double>(&dense_squares, 1));
  double values_squares = 0;
  row_optimizer.add_squares(stream_, row_gradients, Vector<double>(&values_squares, 1));
  const Gate gate =
      decide(world_, {.dense_squares = dense_squares, .values_squares = values_squares, .loss_sum = 1, .tokens = 1});
  const double dense_norm = std::sqrt(gate.dense_squares);
  const double values_norm = std::sqrt(gate.values_squares);
  EXPECT_NEAR(dense_norm, file_.scalar("dense_norm"), kTolerance * dense_norm);
  EXPECT_NEAR(values_norm, file_.scalar("values_norm"), kTolerance * values_norm);

  const ScheduleOptions schedule = {.kind = ScheduleKind::kInverseSqrt,
                                    .peak = file_.scalar("peak"),
                                    .warmup_init = file_.scalar("warmup_init"),
                                    .warmup_steps = file_.integer("warmup")};
  EXPECT_NEAR(learning_rate(schedule, 1), file_.scalar("lr"), 1e-6 * file_.scalar("lr"));
  Adam adam({}, {{0, parameters_.count()}}, {.beta1 = 0.9, .beta2 = 0.98, .eps = file_.scalar("adam_eps")});
  adam.step(stream_, parameters_.values(), parameters_.gradients(),
            clip_factor(dense_norm, file_.scalar("dense_max_norm")), learning_rate(schedule, 1), 1);
  row_optimizer.step(stream_, table_.rows(), row_gradients, clip_factor(values_norm, file_.scalar("values_max_norm")),
                     file_.scalar("values_lr"), 1);

  expect_dense(parameters_.values(), ".after", kTolerance, /*floor=*/1e-2);
  expect_dense(adam.first_moments(), ".first_moments", kGradients, /*floor=*/1e-4);
  expect_dense(adam.second_moments(), ".second_moments", kGradients, /*floor=*/1e-8);
  golden::expect_close(kTable + ".after", all_rows(table_), file_.floats(kTable + ".after"), kTolerance);
  const auto state = row_optimizer.state();
  for (const auto& [tensor, name] :
       {std::pair(state[0], kTable + ".first_moments"), {state[1], kTable + ".second_moments"}})
    golden::expect_close(name, std::get<Matrix<float>>(tensor.data).flat(), file_.floats(name), kGradients);
  for (const auto& entry : parameters_.state_entries())
    golden::expect_close(entry.name, part(parameters_.states(), entry), file_.floats(entry.name + ".after"),
                         kTolerance);
}

// Had the update no effect on a tensor, a tolerance relative to its values would hardly see it.
TEST_F(TrainStep, MovesEveryTensorByMuchMoreThanTheTolerance) {
  const auto far = [&](const std::string& name) {
    const auto before = file_.floats(name + ".before");
    const auto after = file_.floats(name + ".after");
    double largest = 1e-2;
    double moved = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(after[i])));
      moved = std::max(moved, std::abs(static_cast<double>(after[i]) - before[i]));
    }
    return moved > 5 * kTolerance * largest;
  };
  EXPECT_TRUE(far(kTable));
  for (const auto& entry : parameters_.entries())
    EXPECT_TRUE(far(entry.name) || entry.name == "layers.1.memory.query.bias") << entry.name;  // its gradient is 0
}

}  // namespace
}  // namespace pkmesh
