// SPDX-License-Identifier: Apache-2.0
#include "runtime/device.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "runtime/check.h"
#include "runtime/dispatch.h"

namespace pkmesh {

PKM_KERNEL(only_on_the_cpu, int value, int* out)
void cpu::only_on_the_cpu(Stream&, int value, int* out) {
  *out = value;
}

namespace {

TEST(Device, EventsKeepTime) {
  Stream stream;
  Event before({}, Event::Kind::kTimed);
  Event after({}, Event::Kind::kTimed);
  before.record(stream);
  std::this_thread::sleep_for(std::chrono::milliseconds(3));
  after.record(stream);
  EXPECT_GE(Event::milliseconds(before, after), 3.0);
  Event place;
  place.record(stream);
  EXPECT_THROW(Event::milliseconds(before, place), InternalError);
}

TEST(Device, MathScopesNest) {
  Stream stream;
  EXPECT_EQ(stream.math(), Math::kFp32);
  stream.set_math(Math::kBf16);
  {
    const MathScope exact(stream, Math::kFp32);
    const MathScope half(stream, Math::kFp16);
    EXPECT_EQ(stream.math(), Math::kFp16);
  }
  EXPECT_EQ(stream.math(), Math::kBf16);
}

TEST(Device, DispatchRunsOnTheStreamsDevice) {
  Stream stream;
  int seen = 0;
  PKM_DISPATCH(stream, only_on_the_cpu, 7, &seen);
  EXPECT_EQ(seen, 7);
}

TEST(Device, CopiesSpansOfAnyType) {
  Stream stream;
  const std::vector<int32_t> from = {3, -1, 4};
  std::vector<int32_t> to = {7, 7, 7, 7, 7};
  copy(stream, from, std::span(to).subspan(1, 3));
  EXPECT_EQ(to, (std::vector<int32_t>{7, 3, -1, 4, 7}));
  copy(stream, std::span<const int32_t>(), std::span<int32_t>());
  EXPECT_THROW(copy(stream, from, std::span(to)), InternalError);
}

TEST(Device, WhatIsNotCompiledInSaysSo) {
  if (compiled_with(DeviceKind::kCuda)) GTEST_SKIP() << "this program has CUDA";
  try {
    Stream stream(Device{DeviceKind::kCuda, 0});
    FAIL() << "there is no CUDA here";
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), "device CUDA: this program was built without it; build the cuda preset");
  }
  EXPECT_EQ(device_count(DeviceKind::kCuda), 0);
}

}  // namespace
}  // namespace pkmesh
