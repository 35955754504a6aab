// SPDX-License-Identifier: Apache-2.0
// The ops linear and layer_norm with the parameters that they learn. forward() notes what backward() needs; x and what
// is returned stay in the step's arena. backward() adds to the parameters' gradients.
#pragma once

#include <optional>
#include <string>

#include "layers/context.h"
#include "layers/parameters.h"

namespace pkmesh {

// y = x W^T + b; NAME.weight (out, in) and, where it has an Init, NAME.bias (out).
class Linear {
 public:
  Linear(Parameters& parameters, const std::string& name, int64_t in, int64_t out, Init weight,
         std::optional<Init> bias);
  Matrix<float> forward(StepContext& context, Matrix<const float> x);  // (T, in) -> (T, out)
  // Without `trains_bias` the bias's gradient stays as it is.
  void backward(StepContext& context, Matrix<const float> dy, Matrix<float> dx, bool trains_bias = true);

 private:
  int64_t outputs_;
  Parameter<2> weight_;
  std::optional<Parameter<1>> bias_;
  Matrix<const float> x_;
};

// Layer norm with learned scale and shift, NAME.weight (ones) and NAME.bias (zeros), both (d).
class LayerNorm {
 public:
  LayerNorm(Parameters& parameters, const std::string& name, int64_t width);
  Matrix<float> forward(StepContext& context, Matrix<const float> x);  // (T, d) -> (T, d)
  // norm(x + branch). The sum is kept in branch's place.
  Matrix<float> forward_sum(StepContext& context, Matrix<const float> x, Matrix<float> branch);
  // From dy to the gradient of what was normalised, plus `skip` (T, d) where given: what reaches it by another way.
  // gradient may be dy or skip.
  void backward(StepContext& context, Matrix<const float> dy, Matrix<const float> skip, Matrix<float> gradient);

 private:
  Parameter<1> weight_;
  Parameter<1> bias_;
  Matrix<const float> x_;
  Vector<float> mean_;               // (T)
  Vector<float> inverse_deviation_;  // (T)
};

}  // namespace pkmesh
