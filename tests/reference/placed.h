// SPDX-License-Identifier: Apache-2.0
// Parity of devices: a test runs one op on the CPU and on the GPU with the same inputs, by the same code, and compares.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <vector>

#include "runtime/buffer.h"
#include "runtime/device.h"

namespace pkmesh::reference {

// Tests of this fixture are skipped by name where there is no GPU. PKMESH_REQUIRE_GPU=1 makes that a failure.
class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (device_count(DeviceKind::kCuda) > 0) {
      gpu_.emplace(Device{DeviceKind::kCuda, 0});
      return;
    }
    const char* required = std::getenv("PKMESH_REQUIRE_GPU");
    if (required != nullptr && std::strcmp(required, "1") == 0) FAIL() << "PKMESH_REQUIRE_GPU=1, but no CUDA device";
    GTEST_SKIP() << "no CUDA device: this kernel was not run";
  }

  // What run(stream) returns on either device; on the GPU twice, which must give the same bits.
  template <class Run>
  auto on_both(const Run& run) {
    auto expected = run(cpu_);
    auto actual = run(*gpu_);
    EXPECT_TRUE(actual.same_bits(run(*gpu_))) << "two runs on the GPU differ";
    return std::pair(std::move(expected), std::move(actual));
  }

  Stream& cpu() { return cpu_; }
  Stream& gpu() { return *gpu_; }

 private:
  Stream cpu_;
  std::optional<Stream> gpu_;
};

template <class T>
bool equal_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// True if the environment's PKMESH_QUICK asks for smaller shapes: emulated kernels under a sanitizer are slow.
inline bool quick() {
  const char* asked = std::getenv("PKMESH_QUICK");
  return asked != nullptr && std::strcmp(asked, "1") == 0;
}

// Values on a stream's device, between guards that must be intact when they are read back.
template <class T>
class Placed {
 public:
  static constexpr int64_t kAligned = 64;  // elements before the values: they begin at a multiple of 64 bytes
  static constexpr int64_t kOdd = 19;      // ... are not aligned for vectors

  Placed(Stream& stream, const std::vector<T>& values, int64_t lead = kAligned)
      : stream_(stream), lead_(lead), count_(std::ssize(values)), memory_(stream.device(), lead + count_ + kAligned) {
    std::vector<T> all(static_cast<size_t>(memory_.count()));
    std::memset(static_cast<void*>(all.data()), kGuard, all.size() * sizeof(T));
    std::copy(values.begin(), values.end(), all.begin() + lead);
    copy(stream_, all, memory_.span());
    stream_.synchronize();
  }
  // {x} is a value, not a count.
  Placed(Stream& stream, std::initializer_list<T> values) : Placed(stream, std::vector<T>(values)) {}
  // An output, of garbage.
  Placed(Stream& stream, int64_t count, int64_t lead = kAligned) : Placed(stream, garbage(count), lead) {}
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;

  T* data() const { return memory_.data() + lead_; }
  template <class... Sizes>
  View<T, sizeof...(Sizes)> view(Sizes... sizes) const {
    View<T, sizeof...(Sizes)> view(data(), sizes...);
    EXPECT_EQ(view.count(), count_);
    return view;
  }
  Vector<T> view() const { return Vector<T>(data(), count_); }

  // The first `count` values.
  std::vector<T> values(int64_t count) const {
    std::vector<T> all(static_cast<size_t>(memory_.count()));
    copy(stream_, memory_.span(), std::span(all));
    stream_.synchronize();
    for (int64_t i = 0; i < memory_.count(); ++i) {
      if (i == lead_) i += count_;
      unsigned char bytes[sizeof(T)];
      std::memcpy(bytes, &all[static_cast<size_t>(i)], sizeof(T));
      for (const unsigned char byte : bytes) EXPECT_EQ(byte, kGuard) << "element " << i - lead_ << " of " << count_;
    }
    return {all.begin() + lead_, all.begin() + lead_ + count};
  }
  std::vector<T> values() const { return values(count_); }

 private:
  static constexpr unsigned char kGuard = 0xA5;
  static std::vector<T> garbage(int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    if (count > 0) std::memset(static_cast<void*>(values.data()), 0x5A, values.size() * sizeof(T));
    return values;
  }

  Stream& stream_;
  int64_t lead_;
  int64_t count_;
  Buffer<T> memory_;
};

// |actual - expected| <= tolerance * max(1, |expected|); a NaN equals a NaN only.
template <class T>
void expect_close(std::string_view what, const std::vector<T>& actual, const std::vector<T>& expected,
                  double tolerance) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto a = static_cast<double>(actual[i]);
    const auto e = static_cast<double>(expected[i]);
    ASSERT_TRUE(std::isnan(e) ? std::isnan(a) : std::abs(a - e) <= tolerance * std::max(1.0, std::abs(e)))
        << what << "[" << i << "] is " << a << ", expected " << e;
  }
}

}  // namespace pkmesh::reference
