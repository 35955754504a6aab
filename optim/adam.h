// SPDX-License-Identifier: Apache-2.0
// Adam (Kingma and Ba, 2015) with decoupled weight decay (AdamW; Loshchilov and Hutter, 2019) over one flat span that
// holds dense parameters: all of it, or a rank's shares. The gradient's scale (clipping factor / loss scale) is
// applied on the way: one pass reads and writes everything once. As torch.optim.AdamW, eps is added to the root of the
// bias-corrected second moment.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "comm/share.h"
#include "runtime/buffer.h"
#include "runtime/dispatch.h"
#include "runtime/view.h"

namespace pkmesh {

struct AdamOptions {
  double beta1 = 0.9;
  double beta2 = 0.98;
  double eps = 1e-8;
  double weight_decay = 0;  // value -= lr * weight_decay * value, on the ranges that decay
};

// What one update needs, with both bias corrections folded in (computed in double once, used in fp32):
//   g = scale * gradient;  m += (g - m) * one_minus_beta1;  v = beta2 * v + one_minus_beta2 * g^2
//   value = keep * value - rate * m / (sqrt(v) + eps),  keep = 1 where nothing decays
struct AdamCoefficients {
  float scale;            // of the gradient
  float one_minus_beta1;  // 1 - beta1
  float beta2;
  float one_minus_beta2;
  float rate;  // lr * sqrt(1 - beta2^t) / (1 - beta1^t)
  float eps;   // options.eps * sqrt(1 - beta2^t)
  float keep;  // 1 - lr * weight decay
};

// The t-th update, t >= 1.
AdamCoefficients adam_coefficients(const AdamOptions& options, double lr, int64_t step, double scale);

// One update of all (n) elements, in one pass. decayed (2 ranges): begin and end of each range that decays, ascending
// and apart. Results do not depend on the thread count.
PKM_OP(adam_update, const AdamCoefficients& coefficients, Vector<const int64_t> decayed, Vector<float> values,
       Vector<const float> gradients, Vector<float> first_moments, Vector<float> second_moments)

// The moments of shares of one flat span of parameters, which are ascending and apart: one after the other, in the
// parameters' order.
class Adam {
 public:
  // `decayed`: the ranges of the span with weight decay, ascending and apart (matrices; biases and norms usually do not
  // decay).
  Adam(Device device, const std::vector<Share>& shares, const AdamOptions& options,
       const std::vector<Share>& decayed = {});

  // The t-th update, t >= 1, with gradients * scale. values, gradients: the whole span; its shares move, or those with
  // numbers in `some`.
  void step(Stream& stream, std::span<float> values, std::span<const float> gradients, double scale, double lr,
            int64_t step, std::optional<Share> some = {});

  std::span<float> first_moments() const { return first_.span(); }
  std::span<float> second_moments() const { return second_.span(); }

 private:
  struct Piece {
    Share share;
    Share moments;  // in first_, second_
    Share bounds;   // in decayed_
  };
  AdamOptions options_;
  std::vector<Piece> pieces_;
  Buffer<int64_t> decayed_;  // begin and end of the ranges within each share, counted from its beginning
  Buffer<float> first_;
  Buffer<float> second_;
};

}  // namespace pkmesh
