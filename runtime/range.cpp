// SPDX-License-Identifier: Apache-2.0
#include "runtime/range.h"

namespace pkmesh {
namespace {
thread_local RangeObserver* t_observer = nullptr;
}

RangeObserver* observe_ranges(RangeObserver* observer) {
  RangeObserver* const former = t_observer;
  t_observer = observer;
  return former;
}

Range::Range(std::string_view name) : observer_(t_observer), name_(name) {
  if (observer_ != nullptr) begin_ = Clock::now();
}

Range::~Range() {
  if (observer_ != nullptr) observer_->on_range(name_, begin_, Clock::now());
}

}  // namespace pkmesh
