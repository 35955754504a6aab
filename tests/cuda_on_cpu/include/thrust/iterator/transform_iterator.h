// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <iterator>
#include <type_traits>

namespace thrust {

template <class Function, class Iterator>
struct transform_iterator {
  using iterator_category = std::input_iterator_tag;
  using reference = std::invoke_result_t<Function, decltype(*std::declval<Iterator>())>;
  using value_type = std::decay_t<reference>;
  using difference_type = std::ptrdiff_t;
  using pointer = void;

  reference operator*() const { return function(*at); }
  transform_iterator& operator++() {
    ++at;
    return *this;
  }
  transform_iterator operator++(int) { return {at++, function}; }
  transform_iterator operator+(difference_type n) const { return {at + n, function}; }
  bool operator==(const transform_iterator& other) const { return at == other.at; }
  bool operator!=(const transform_iterator& other) const { return at != other.at; }

  Iterator at;
  Function function;
};

template <class Function, class Iterator>
transform_iterator<Function, Iterator> make_transform_iterator(Iterator at, Function function) {
  return {at, function};
}

}  // namespace thrust
