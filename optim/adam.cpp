// SPDX-License-Identifier: Apache-2.0
#include "optim/adam.h"

#include <cmath>

#include "runtime/range.h"

namespace pkmesh {

AdamCoefficients adam_coefficients(const AdamOptions& options, double lr, int64_t step, double scale, bool decays) {
  PKM_CHECK(step >= 1, "steps count from 1, got {}", step);
  const auto t = static_cast<double>(step);
  const double root2 = std::sqrt(1.0 - std::pow(options.beta2, t));
  return {.scale = static_cast<float>(scale),
          .one_minus_beta1 = static_cast<float>(1.0 - options.beta1),
          .beta2 = static_cast<float>(options.beta2),
          .one_minus_beta2 = static_cast<float>(1.0 - options.beta2),
          .rate = static_cast<float>(lr * root2 / (1.0 - std::pow(options.beta1, t))),
          .eps = static_cast<float>(options.eps * root2),
          .keep = decays ? static_cast<float>(1.0 - lr * options.weight_decay) : 1.0F};
}

void adam_update(Stream& stream, const AdamCoefficients& coefficients, Vector<float> values,
                 Vector<const float> gradients, Vector<float> first_moments, Vector<float> second_moments) {
  const int64_t count = values.count();
  check_shape("adam: gradients", gradients, {{"parameters", count}});
  check_shape("adam: first moments", first_moments, {{"parameters", count}});
  check_shape("adam: second moments", second_moments, {{"parameters", count}});
  if (count == 0) return;
  Range range("adam");
  PKM_DISPATCH(stream, adam_update, coefficients, values, gradients, first_moments, second_moments);
}

Adam::Adam(Device device, int64_t count, const AdamOptions& options, std::vector<Range> decayed)
    : options_(options), first_(device, count), second_(device, count) {
  int64_t done = 0;
  if (options.weight_decay == 0) decayed.clear();
  for (const auto& [begin, end] : decayed) {
    PKM_CHECK(done <= begin && begin <= end && end <= count, "decayed range [{}, {}) after {} of {} parameters", begin,
              end, done, count);
    if (begin == end) continue;
    if (done < begin) pieces_.push_back({done, begin, false});
    if (!pieces_.empty() && pieces_.back().decays && pieces_.back().end == begin) {
      pieces_.back().end = end;  // neighbours become one pass
    } else {
      pieces_.push_back({begin, end, true});
    }
    done = end;
  }
  if (done < count) pieces_.push_back({done, count, false});
}

void Adam::step(Stream& stream, std::span<float> values, std::span<const float> gradients, double scale, double lr,
                int64_t step) {
  const Vector<float> value(values.data(), std::ssize(values));
  const Vector<const float> gradient(gradients.data(), std::ssize(gradients));
  check_shape("adam: values", value, {{"parameters", first_.count()}});
  check_shape("adam: gradients", gradient, {{"parameters", first_.count()}});
  for (const auto& [begin, end, decays] : pieces_) {
    adam_update(stream, adam_coefficients(options_, lr, step, scale, decays), value.rows(begin, end),
                gradient.rows(begin, end), first_.view().rows(begin, end), second_.view().rows(begin, end));
  }
}

}  // namespace pkmesh
