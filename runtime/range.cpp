// SPDX-License-Identifier: Apache-2.0
#include "runtime/range.h"

namespace pkmesh {

// NVTX; weak for the reason given in dispatch.h.
namespace cuda {
[[gnu::weak]] void push_range(std::string_view name);
[[gnu::weak]] void pop_range();
}  // namespace cuda

namespace {
thread_local RangeObserver* t_observer = nullptr;
}

RangeObserver* observe_ranges(RangeObserver* observer) {
  RangeObserver* const former = t_observer;
  t_observer = observer;
  return former;
}

Range::Range(std::string_view name) : observer_(t_observer), name_(name) {
  if (cuda::push_range != nullptr) cuda::push_range(name_);
  if (observer_ != nullptr) begin_ = Clock::now();
}

Range::~Range() {
  if (cuda::pop_range != nullptr) cuda::pop_range();
  if (observer_ != nullptr) observer_->on_range(name_, begin_, Clock::now());
}

}  // namespace pkmesh
