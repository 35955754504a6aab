// SPDX-License-Identifier: Apache-2.0
#include "optim/adam.h"

#include <algorithm>
#include <cmath>

#include "runtime/range.h"
#include "runtime/readback.h"

namespace pkmesh {

AdamCoefficients adam_coefficients(const AdamOptions& options, double lr, int64_t step, double scale) {
  PKM_CHECK(step >= 1, "steps count from 1, got {}", step);
  const auto t = static_cast<double>(step);
  const double root2 = std::sqrt(1.0 - std::pow(options.beta2, t));
  return {.scale = static_cast<float>(scale),
          .one_minus_beta1 = static_cast<float>(1.0 - options.beta1),
          .beta2 = static_cast<float>(options.beta2),
          .one_minus_beta2 = static_cast<float>(1.0 - options.beta2),
          .rate = static_cast<float>(lr * root2 / (1.0 - std::pow(options.beta1, t))),
          .eps = static_cast<float>(options.eps * root2),
          .keep = static_cast<float>(1.0 - lr * options.weight_decay)};
}

void adam_update(Stream& stream, const AdamCoefficients& coefficients, Vector<const int64_t> decayed,
                 Vector<float> values, Vector<const float> gradients, Vector<float> first_moments,
                 Vector<float> second_moments) {
  const int64_t count = values.count();
  check_shape("adam: gradients", gradients, {{"parameters", count}});
  check_shape("adam: first moments", first_moments, {{"parameters", count}});
  check_shape("adam: second moments", second_moments, {{"parameters", count}});
  PKM_CHECK(decayed.count() % 2 == 0, "{} bounds of decayed ranges", decayed.count());
  if (count == 0) return;
  Range range("adam");
  PKM_DISPATCH(stream, adam_update, coefficients, decayed, values, gradients, first_moments, second_moments);
}

Adam::Adam(Device device, int64_t count, const AdamOptions& options, const std::vector<Range>& decayed)
    : options_(options), first_(device, count), second_(device, count) {
  std::vector<int64_t> bounds;
  for (const auto& [begin, end] : decayed) {
    const int64_t done = bounds.empty() ? 0 : bounds.back();
    PKM_CHECK(done <= begin && begin <= end && end <= count, "decayed range [{}, {}) after {} of {} parameters", begin,
              end, done, count);
    if (begin == end || options.weight_decay == 0) continue;
    if (!bounds.empty() && done == begin)
      bounds.back() = end;  // neighbours become one range
    else
      bounds.insert(bounds.end(), {begin, end});
  }
  Stream stream(device);
  decayed_ = Buffer<int64_t>(device, std::ssize(bounds));
  write_from_host(stream, decayed_.span(),
                  [&](std::span<int64_t> memory) { std::ranges::copy(bounds, memory.begin()); });
}

void Adam::step(Stream& stream, std::span<float> values, std::span<const float> gradients, double scale, double lr,
                int64_t step) {
  const Vector<float> value(values.data(), std::ssize(values));
  const Vector<const float> gradient(gradients.data(), std::ssize(gradients));
  check_shape("adam: values", value, {{"parameters", first_.count()}});
  adam_update(stream, adam_coefficients(options_, lr, step, scale), decayed_.view(), value, gradient, first_.view(),
              second_.view());
}

}  // namespace pkmesh
