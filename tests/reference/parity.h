// SPDX-License-Identifier: Apache-2.0
// Parity of ops with many views: one body runs each op on both devices, over tensors that have a twin on the GPU.
#pragma once

#include <string_view>

#include "runtime/buffer.h"
#include "tests/reference/placed.h"
#include "tests/reference/tensor.h"

namespace pkmesh::reference {

class ParityTest : public GpuTest {
 protected:
  // One of the two devices: on.stream, and on(tensor, sizes...) for the tensor's view there.
  struct Side {
    Stream& stream;
    template <class T, class... Sizes>
    auto operator()(T& tensor, Sizes... sizes) const {
      return stream.device().kind == DeviceKind::kCpu ? tensor.host(sizes...) : tensor.device(sizes...);
    }
  };

  // body(Side) on the CPU, then on the GPU.
  template <class Body>
  void on_both(const Body& body) {
    body(Side{cpu()});
    body(Side{gpu()});
    gpu().synchronize();
  }
};

// The same numbers in two memories, with sentinels around them in both.
template <class T = float>
class Twin {
 public:
  static constexpr int64_t kOdd = 19;  // sentinels on either side: what lies between them is not aligned for vectors
  static constexpr int64_t kAligned = 64;

  // An output: garbage until an op writes it.
  Twin(Stream& gpu, int64_t count, int64_t guard = kOdd)
      : gpu_(gpu), guard_(guard), host_(count), memory_(gpu.device(), count + 2 * guard) {
    send();
  }
  Twin(Stream& gpu, const Numbers& numbers, int64_t guard = kOdd)
      : gpu_(gpu), guard_(guard), host_(numbers), memory_(gpu.device(), std::ssize(numbers) + 2 * guard) {
    send();
  }

  template <class... Sizes>
  auto host(Sizes... sizes) {
    return host_.view(sizes...);
  }
  template <class... Sizes>
  View<T, sizeof...(Sizes)> device(Sizes... sizes) {
    const auto view = View<T, sizeof...(Sizes)>(memory_.data() + guard_, sizes...);
    EXPECT_EQ(view.count(), host_.view().count());
    return view;
  }

  std::vector<T> device_values() {
    const std::vector<T> all = receive();
    return {all.begin() + guard_, all.end() - guard_};
  }

  // |device - host| <= tolerance * max(1, |host|), element by element; 0 asks for equal numbers (or two NaNs).
  void expect_parity(std::string_view what, double tolerance) {
    const std::vector<T> all = receive();
    for (int64_t i = 0; i < guard_; ++i) {
      EXPECT_EQ(all[static_cast<size_t>(i)], sentinel()) << what << ": written " << guard_ - i << " before it";
      EXPECT_EQ(all[all.size() - 1 - static_cast<size_t>(i)], sentinel()) << what << ": written behind its end";
    }
    const std::vector<T> expected = host_.values();
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto value = static_cast<double>(all[static_cast<size_t>(guard_) + i]);
      const auto on_host = static_cast<double>(expected[i]);
      if (std::isnan(value) && std::isnan(on_host)) continue;
      ASSERT_TRUE(std::abs(value - on_host) <= tolerance * std::max(1.0, std::abs(on_host)))
          << what << "[" << i << "] is " << value << " on the device, " << on_host << " on the CPU";
    }
  }

 private:
  static T sentinel() { return static_cast<T>(-123456789); }

  void send() {
    std::vector<T> all(static_cast<size_t>(memory_.count()), sentinel());
    const std::vector<T> values = host_.values();
    std::copy(values.begin(), values.end(), all.begin() + guard_);
    copy(gpu_, all, memory_.span());
    gpu_.synchronize();
  }
  std::vector<T> receive() {
    std::vector<T> all(static_cast<size_t>(memory_.count()));
    copy(gpu_, memory_.span(), std::span(all));
    gpu_.synchronize();
    return all;
  }

  Stream& gpu_;
  int64_t guard_;
  Tensor<T> host_;
  Buffer<T> memory_;
};

}  // namespace pkmesh::reference
