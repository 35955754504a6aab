// SPDX-License-Identifier: Apache-2.0
// Where the dense parameters live: values, gradients and states each in one flat buffer, in order of registration,
// which is the order of the forward pass. So the optimiser, the clipping norm, the gradient buckets and the checkpoint
// each walk one span, and the backward pass completes the gradient buffer from its end to its beginning. Layers
// register in their constructors; allocate() then makes the memory and fills it; from there on handles work.
#pragma once

#include <string>
#include <vector>

#include "runtime/buffer.h"

namespace pkmesh {

class Parameters;

// How a parameter starts. Values are a function of (seed, parameter name, index): the same on any rank and device.
struct Init {
  enum class Kind { kConstant, kNormal, kUniform } kind = Kind::kConstant;
  float scale = 0;  // the constant; the standard deviation; the bound of the symmetric interval

  static Init constant(float value) { return {Kind::kConstant, value}; }
  static Init normal(float standard_deviation) { return {Kind::kNormal, standard_deviation}; }
  static Init uniform(float bound) { return {Kind::kUniform, bound}; }
};

// Handle to a registered parameter with N dimensions; cheap to copy. gradient() accumulates over a step's
// micro-batches.
template <int N>
class Parameter {
 public:
  Parameter() = default;
  View<float, N> value() const;
  View<float, N> gradient() const;

 private:
  friend class Parameters;
  Parameter(Parameters* owner, int64_t offset, std::array<int64_t, N> shape)
      : owner_(owner), offset_(offset), shape_(shape) {}
  Parameters* owner_ = nullptr;
  int64_t offset_ = 0;
  std::array<int64_t, N> shape_{};
};

// Handle to state that is saved and restored but not learned by gradients (BatchNorm's running statistics).
class State {
 public:
  State() = default;
  Vector<float> value() const;

 private:
  friend class Parameters;
  State(Parameters* owner, int64_t offset, int64_t count) : owner_(owner), offset_(offset), count_(count) {}
  Parameters* owner_ = nullptr;
  int64_t offset_ = 0;
  int64_t count_ = 0;
};

class Parameters {
 public:
  struct Entry {
    std::string name;  // "layers.3.attention.qkv.weight"
    std::vector<int64_t> shape;
    int64_t offset;
    int64_t count;
    Init init;
    bool decays;  // takes weight decay: matrices do, biases and norms do not
  };

  Parameters() = default;
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  template <int N>
  Parameter<N> add(const std::string& name, const std::array<int64_t, N>& shape, Init init, bool decays = N >= 2) {
    const int64_t offset = add_entry(entries_, count_, name, {shape.begin(), shape.end()}, init, decays);
    return Parameter<N>(this, offset, shape);
  }
  State add_state(const std::string& name, int64_t count, Init init) {
    const int64_t offset = add_entry(state_entries_, state_count_, name, {count}, init, false);
    return State(this, offset, count);
  }

  // Makes the memory and initialises values and states; gradients are zero. Once, after the last add().
  void allocate(Device device, uint64_t seed);

  int64_t count() const { return count_; }
  std::span<float> values() const { return values_.span(); }
  std::span<float> gradients() const { return gradients_.span(); }
  std::span<float> states() const { return states_.span(); }
  const std::vector<Entry>& entries() const { return entries_; }
  const std::vector<Entry>& state_entries() const { return state_entries_; }

 private:
  static int64_t add_entry(std::vector<Entry>& entries, int64_t& total, const std::string& name,
                           std::vector<int64_t> shape, Init init, bool decays);

  std::vector<Entry> entries_;
  std::vector<Entry> state_entries_;
  int64_t count_ = 0;
  int64_t state_count_ = 0;
  Buffer<float> values_;
  Buffer<float> gradients_;
  Buffer<float> states_;
};

template <int N>
View<float, N> Parameter<N>::value() const {
  return View<float, N>(owner_->values().data() + offset_, shape_);
}
template <int N>
View<float, N> Parameter<N>::gradient() const {
  return View<float, N>(owner_->gradients().data() + offset_, shape_);
}
inline Vector<float> State::value() const {
  return Vector<float>(owner_->states().data() + offset_, count_);
}

}  // namespace pkmesh
