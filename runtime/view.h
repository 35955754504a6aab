// SPDX-License-Identifier: Apache-2.0
// A View is a pointer with a shape: row-major, contiguous, owning nothing. Its last extent runs fastest.
// Every op takes Views; who owns the memory (a Buffer, an Arena) is the caller's business.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <type_traits>

#include "runtime/check.h"

namespace pkmesh {

template <class T, int N>
class View {
  static_assert(N >= 1);

 public:
  View() = default;
  template <class... Sizes>
  requires(sizeof...(Sizes) == N && (std::is_convertible_v<Sizes, int64_t> && ...)) explicit View(T* data,
                                                                                                  Sizes... sizes)
      : data_(data), shape_{static_cast<int64_t>(sizes)...} {}
  View(T* data, const std::array<int64_t, N>& shape) : data_(data), shape_(shape) {}

  // Read-only views are made from writable ones without a word.
  operator View<const T, N>() const requires(!std::is_const_v<T>) { return View<const T, N>(data_, shape_); }

  T* data() const { return data_; }
  const std::array<int64_t, N>& shape() const { return shape_; }
  int64_t size(int dimension) const { return shape_[static_cast<size_t>(dimension)]; }
  int64_t count() const {
    int64_t product = 1;
    for (const int64_t size : shape_) product *= size;
    return product;
  }
  bool empty() const { return count() == 0; }
  std::span<T> flat() const { return {data_, static_cast<size_t>(count())}; }
  T* begin() const { return data_; }
  T* end() const { return data_ + count(); }

  template <class... Indices>
  requires(sizeof...(Indices) == N && (std::is_convertible_v<Indices, int64_t> && ...)) T& operator()(
      Indices... indices) const {
    int64_t offset = 0;
    int dimension = 0;
    ((offset = offset * shape_[static_cast<size_t>(dimension++)] + static_cast<int64_t>(indices)), ...);
    return data_[offset];
  }

  // The i-th slice along the first dimension: a row of a matrix, an element of a vector.
  decltype(auto) operator[](int64_t i) const {
    if constexpr (N == 1) {
      return (data_[i]);
    } else {
      std::array<int64_t, N - 1> rest;
      for (size_t d = 1; d < N; ++d) rest[d - 1] = shape_[d];
      View<T, N - 1> slice(data_, rest);
      return View<T, N - 1>(data_ + i * slice.count(), rest);
    }
  }

  // Entries [begin, end) of the first dimension.
  View rows(int64_t begin, int64_t end) const {
    auto shape = shape_;
    shape[0] = end - begin;
    const int64_t stride = shape_[0] == 0 ? 0 : count() / shape_[0];
    return View(data_ + begin * stride, shape);
  }

  // The same elements under another shape of equal count.
  template <class... Sizes>
  View<T, sizeof...(Sizes)> reshape(Sizes... sizes) const {
    View<T, sizeof...(Sizes)> other(data_, sizes...);
    PKM_CHECK(other.count() == count(), "reshape from {} to {} elements", count(), other.count());
    return other;
  }

 private:
  T* data_ = nullptr;
  std::array<int64_t, N> shape_{};
};

template <class T>
using Vector = View<T, 1>;
template <class T>
using Matrix = View<T, 2>;

template <class T, int N>
void check_shape(std::string_view what, const View<T, N>& view, std::initializer_list<Extent> expected) {
  check_shape(what, std::span<const int64_t>(view.shape()), expected);
}

}  // namespace pkmesh
