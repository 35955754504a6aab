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
  PKM_DISPATCH(stream, adam_update, coefficients, decayed, values, gradients, first_moments, second_moments);
}

Adam::Adam(Device device, const std::vector<Share>& shares, const AdamOptions& options,
           const std::vector<Share>& decayed)
    : options_(options) {
  std::vector<int64_t> bounds;
  int64_t count = 0;
  for (const Share& share : shares) {
    PKM_CHECK(pieces_.empty() || pieces_.back().share.end <= share.begin, "shares of parameters are not ascending");
    const auto first = std::ssize(bounds);
    int64_t done = 0;
    for (const Share& range : decayed) {
      PKM_CHECK(done <= range.begin && range.begin <= range.end, "decayed range [{}, {}) after {}", range.begin,
                range.end, done);
      done = range.end;
      const Share part = share.part_of(range);
      if (part.count() == 0 || options.weight_decay == 0) continue;
      if (std::ssize(bounds) > first && bounds.back() == part.begin - share.begin)
        bounds.back() = part.end - share.begin;  // neighbours become one range
      else
        bounds.insert(bounds.end(), {part.begin - share.begin, part.end - share.begin});
    }
    pieces_.push_back({share, {count, count + share.count()}, {first, std::ssize(bounds)}});
    count += share.count();
  }
  Stream stream(device);
  first_ = Buffer<float>(device, count);
  second_ = Buffer<float>(device, count);
  decayed_ = Buffer<int64_t>(device, std::ssize(bounds));
  write_from_host(stream, decayed_.span(),
                  [&](std::span<int64_t> memory) { std::ranges::copy(bounds, memory.begin()); });
}

void Adam::step(Stream& stream, std::span<float> values, std::span<const float> gradients, double scale, double lr,
                int64_t step, std::optional<Share> some) {
  const Vector<float> value(values.data(), std::ssize(values));
  const Vector<const float> gradient(gradients.data(), std::ssize(gradients));
  check_shape("adam: gradients", gradient, {{"parameters", value.count()}});
  PKM_CHECK(pieces_.empty() || pieces_.back().share.end <= value.count(), "adam: {} parameters, a share up to {}",
            value.count(), pieces_.back().share.end);
  const AdamCoefficients coefficients = adam_coefficients(options_, lr, step, scale);
  Range range("adam");
  for (const auto& [share, moments, bounds] : some.value_or(Share{0, std::ssize(pieces_)}).of(std::span(pieces_)))
    adam_update(stream, coefficients, decayed_.view().rows(bounds.begin, bounds.end),
                value.rows(share.begin, share.end), gradient.rows(share.begin, share.end),
                first_.view().rows(moments.begin, moments.end), second_.view().rows(moments.begin, moments.end));
}

}  // namespace pkmesh
