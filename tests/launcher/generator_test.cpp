// SPDX-License-Identifier: Apache-2.0
#include "launcher/generator.h"

#include <gtest/gtest.h>

#include <cmath>
#include <iterator>
#include <numeric>

#include "comm/self.h"
#include "tests/launcher/tiny_run.h"

namespace pkmesh {
namespace {

double loss_of(std::span<const float> logits, int32_t target) {
  const double sum = std::accumulate(logits.begin(), logits.end(), 0.0,
                                     [](double total, float logit) { return total + std::exp(double{logit}); });
  return std::log(sum) - logits[static_cast<size_t>(target)];
}

// What the whole model, without caches, loses on the last of `window`'s targets.
double loss_in_one_pass(Model& model, const std::vector<int32_t>& window, int32_t target) {
  const auto length = std::ssize(window);
  StepContext context = model.begin(/*training=*/false);
  const std::vector<int32_t> targets(window.size(), target);
  const auto losses = model.transformer().losses(context, Matrix<const int32_t>(window.data(), 1, length),
                                                 Matrix<const int32_t>(targets.data(), 1, length));
  return losses[length - 1];
}

// Over more than two contexts, token by token: after a full context of C the later half of it stays.
TEST(Generator, PredictsWhatTheModelDoesOfTheTokensThatAreKept) {
  for (const int64_t size : {1, 7, 16}) {
    SCOPED_TRACE(size);
    SelfCommunicator world;
    const config::Config config = tiny::config({"model.context=" + std::to_string(size)});
    Model model(config, world, {}, tiny::kVocabulary);
    Generator generator(model);
    for (int text = 0; text < 2; ++text, generator.clear()) {
      std::vector<int32_t> window;
      for (const int32_t id : tiny::ids(40)) {
        if (std::ssize(window) == size) window.erase(window.begin(), window.begin() + (size + 1) / 2);
        window.push_back(id);
        const auto logits = generator.feed(id);
        const int32_t target = (id + 5 * text) % tiny::kVocabulary;
        const double loss = loss_of(logits, target);
        EXPECT_NEAR(loss, loss_in_one_pass(model, window, target), 1e-5 * loss);
      }
    }
  }
}

}  // namespace
}  // namespace pkmesh
