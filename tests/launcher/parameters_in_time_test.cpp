// SPDX-License-Identifier: Apache-2.0
// Parameters that are on their way, and gradients that leave, behind the computation: nothing is read before it was
// waited for, nothing changes after it was said to be final.
#include <gtest/gtest.h>

#include <limits>

#include "comm/self.h"
#include "layers/elementwise.h"
#include "tests/launcher/train_fixture.h"

namespace pkmesh {
namespace {

class InTime : public Train, public testing::WithParamInterface<std::vector<std::string>> {
 protected:
  static constexpr int64_t kSequences = 3;

  // Losses of one micro-batch, with what prepare() puts into its context; gradients from 0.
  std::vector<float> losses(const std::function<void(StepContext&)>& prepare) {
    clear(model_.stream(), parameters_.gradients());
    std::ranges::copy(states_, parameters_.states().begin());
    StepContext context = model_.begin(/*training=*/true);
    batches_.fill({0, kSequences}, Matrix<int32_t>(inputs_.data(), kSequences, 16),
                  Matrix<int32_t>(targets_.data(), kSequences, 16));
    if (prepare) prepare(context);
    const auto losses =
        model_.transformer().losses_and_gradients(context, Matrix<const int32_t>(inputs_.data(), kSequences, 16),
                                                  Matrix<const int32_t>(targets_.data(), kSequences, 16), 0.02F);
    for (const auto& table : model_.transformer().tables()) table->forget_pending();
    return {losses.begin(), losses.end()};
  }

  SelfCommunicator world_;
  const config::Config config_ = tiny::config(GetParam());
  Model model_{config_, world_, {}, tiny::kVocabulary};
  Parameters& parameters_ = model_.parameters();
  const std::vector<float> states_{parameters_.states().begin(), parameters_.states().end()};
  BatchSampler batches_{tokens_, 16, 1};
  std::vector<int32_t> inputs_ = std::vector<int32_t>(kSequences * 16);
  std::vector<int32_t> targets_ = inputs_;
};

TEST_P(InTime, ReadsAndLeavesNothingTooEarly) {
  const auto expected = losses({});
  const std::vector<float> expected_gradients(parameters_.gradients().begin(), parameters_.gradients().end());
  const std::vector<float> values(parameters_.values().begin(), parameters_.values().end());
  const int64_t tokens = model_.transformer().token_parameters();
  const int64_t width = config_.model().width();

  for (const bool apart : {false, true}) {
    SCOPED_TRACE(apart);
    std::ranges::fill(parameters_.values(), std::numeric_limits<float>::quiet_NaN());
    std::vector<float> final_gradients(values.size());
    std::vector<Share> finals;
    Matrix<float> row_gradients;
    const auto actual = losses([&](StepContext& context) {
      context.await_parameters = [&](Share range) {
        std::ranges::copy(range.of(std::span(values)), range.of(parameters_.values()).begin());
      };
      context.gradients_final = [&](Share range) {
        if (range.count() == 0) return;
        finals.push_back(range);
        std::ranges::copy(range.of(parameters_.gradients()), range.of(std::span(final_gradients)).begin());
      };
      if (!apart) return;
      const auto count = std::ssize(inputs_);
      const auto places = context.arena.take<int32_t>(count);
      const auto rows = context.arena.take<float>(count, width);
      row_gradients = context.arena.take<float>(count, width);
      clear(context.stream, row_gradients.flat());
      for (int64_t i = 0; i < count; ++i) {
        places[i] = static_cast<int32_t>(i);  // each input has a row of its own
        const int64_t row = inputs_[static_cast<size_t>(i)] * width;
        std::ranges::copy(Share{row, row + width}.of(std::span(values)), rows[i].begin());
      }
      context.input_rows = InputRows{places, rows, row_gradients};
    });
    EXPECT_EQ(actual, expected);

    // Each once: the embeddings first if they are apart, the others from the end to the beginning.
    if (apart) {
      ASSERT_FALSE(finals.empty());
      EXPECT_EQ(finals.front().begin, 0);
      EXPECT_EQ(finals.front().end, tokens);
      finals.erase(finals.begin());
      for (int64_t i = 0; i < std::ssize(inputs_); ++i)
        for (int64_t j = 0; j < width; ++j)
          final_gradients[static_cast<size_t>(inputs_[static_cast<size_t>(i)] * width + j)] += row_gradients(i, j);
    }
    int64_t begin = std::ssize(values);
    for (const Share& range : finals) {
      EXPECT_EQ(range.end, begin);
      begin = range.begin;
    }
    EXPECT_EQ(begin, apart ? tokens : 0);
    for (size_t i = 0; i < final_gradients.size(); ++i)
      if (apart && static_cast<int64_t>(i) < tokens)
        EXPECT_NEAR(final_gradients[i], expected_gradients[i], 1e-6F) << i;
      else
        EXPECT_EQ(final_gradients[i], expected_gradients[i]) << i;
    std::ranges::copy(values, parameters_.values().begin());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Train, InTime,
    testing::Values(std::vector<std::string>{}, std::vector<std::string>{"model.norm=PRE_LN", "model.dropout=0.1"},
                    std::vector<std::string>{"model.embedding_norm=true", "model.memory.0.placement=AFTER"},
                    std::vector<std::string>{"model.norm=PRE_LN", "model.memory.0.placement=AFTER",
                                             "model.memory.0.output=SWILU"},
                    std::vector<std::string>{"model.memory.0.layers=[0,1]", "model.memory.0.table=both"},
                    std::vector<std::string>{"model.memory=[]"}));

}  // namespace
}  // namespace pkmesh
