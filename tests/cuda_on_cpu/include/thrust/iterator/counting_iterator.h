// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace thrust {

template <class T>
struct counting_iterator {
  explicit counting_iterator(T begin) : first(begin) {}
  T operator[](long i) const { return first + static_cast<T>(i); }
  T first;
};

}  // namespace thrust
