// SPDX-License-Identifier: Apache-2.0
// The judge is judged: what a GPU would punish, the emulated device punishes.
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "layers/elementwise.h"
#include "runtime/buffer.h"
#include "runtime/readback.h"
#include "tests/emulated_device/emulated_device.h"

namespace pkmesh {
namespace {

constexpr Device kGpu = {DeviceKind::kCuda, 0};

std::vector<float> counted(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 1.0F);
  return values;
}

TEST(EmulatedDevice, IsADeviceOfThisProgram) {
  EXPECT_TRUE(compiled_with(DeviceKind::kCuda));
  EXPECT_EQ(device_count(DeviceKind::kCuda), emulated::kDevices);
  EXPECT_THROW(Stream(Device{DeviceKind::kCuda, emulated::kDevices}), UserError);
}

TEST(EmulatedDevice, ComputesWhatTheCpuComputes) {
  Stream stream(kGpu);
  const auto values = counted(10000);
  const Buffer<float> x(kGpu, 10000);
  const Buffer<double> total(kGpu, 1);
  copy(stream, values, x.span());
  add(stream, x.view(), x.view(), x.view());
  add_sum(stream, x.view(), total.view());
  EXPECT_EQ(OnHost(stream, total.span()).span()[0], 10000.0 * 10001.0);
}

TEST(EmulatedDeviceDeathTest, ItsMemoryIsNotTheHosts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Buffer<float> x(kGpu, 10);
  EXPECT_TRUE(on_device(x.data()));
  EXPECT_FALSE(on_device(&x));
  EXPECT_DEATH(x.data()[3] = 1.0F, "emulated device: memory of a device was touched by the host");
  // Nor another device's.
  Stream other(Device{DeviceKind::kCuda, 1});
  const Buffer<float> y(other.device(), 10);
  const auto add_across = [&] {
    add(other, x.view(), y.view(), y.view());
    other.synchronize();
  };
  EXPECT_DEATH(add_across(), "stream of another device");
}

TEST(EmulatedDevice, AnOpIsNotGivenHostMemory) {
  Stream stream(kGpu);
  auto values = counted(10);
  EXPECT_THROW(fill(stream, Vector<float>(values.data(), 10), 2.0F), InternalError);
}

TEST(EmulatedDevice, WhatNobodyWaitedForHasNotHappened) {
  Stream stream(kGpu);
  auto values = counted(4);
  const Buffer<float> x(kGpu, 4);
  std::vector<float> back(4, -1.0F);
  copy(stream, values, x.span());
  copy(stream, x.span(), std::span(back));
  EXPECT_EQ(back[0], -1.0F);
  values[2] = 77.0F;  // too early: the copy has yet to read it
  stream.synchronize();
  EXPECT_EQ(back, (std::vector<float>{1, 2, 77, 4}));
}

TEST(EmulatedDevice, AStreamWaitsForAnothersEvent) {
  Stream first(kGpu);
  Stream second(kGpu);
  Event filled(kGpu);
  const Buffer<float> x(kGpu, 1);
  const Buffer<float> y(kGpu, 1);
  float unordered = 0;
  float ordered = 0;
  fill(first, x.view(), 5.0F);
  filled.record(first);
  fill(first, x.view(), 6.0F);  // behind the event
  copy(second, x.span(), std::span(&unordered, 1));
  filled.hold(second);
  copy(second, x.span(), std::span(&ordered, 1));
  second.synchronize();
  EXPECT_EQ(unordered, 0.0F);
  EXPECT_EQ(ordered, 5.0F);
  first.synchronize();
  EXPECT_EQ(OnHost(first, x.span()).span()[0], 6.0F);
}

TEST(EmulatedDevice, CountsWhatTheHostWaitsForAndAllocates) {
  Stream stream(kGpu);
  const RuntimeCounters before = runtime_counters();
  const Buffer<float> x(kGpu, 4);
  fill(stream, x.view(), 1.0F);
  stream.synchronize();
  Event event(kGpu);
  event.record(stream);
  event.synchronize();
  EXPECT_EQ(runtime_counters().allocations - before.allocations, 1);
  EXPECT_EQ(runtime_counters().synchronizations - before.synchronizations, 2);
}

// What a GPU's memory plan counts is what is in use (launcher/memory_plan.h): an arena may hold little more.
TEST(EmulatedDevice, AnArenaGrowsByAQuarter) {
  constexpr int64_t kPiece = int64_t{1} << 20;
  Arena arena(kGpu);
  for (int64_t taken = kPiece; taken <= 100 * kPiece; taken += kPiece) {
    arena.take<std::byte>(kPiece);
    EXPECT_LE(arena.capacity(), taken + std::max(taken / 3, 4 * kPiece)) << "a quarter, and ends of chunks";
  }
  EXPECT_LE(arena.growths(), 16);
  const int64_t peak = arena.peak();
  arena.reset();
  EXPECT_EQ(arena.capacity(), peak + peak / 32);
}

TEST(EmulatedDevice, ReadbackRunsBesideWorkThatIsQueuedBehindIt) {
  Stream stream(kGpu);
  const Buffer<int64_t> counts(kGpu, 3);
  const Buffer<float> x(kGpu, 1);
  const std::vector<int64_t> values = {4, 5, 6};
  copy(stream, values, counts.span());
  Readback<int64_t> readback;
  readback.start(stream, std::span<const int64_t>(counts.span()));
  bool later = false;
  emulated::enqueue(stream, [&] { later = true; });
  EXPECT_EQ(readback.wait()[2], 6);
  EXPECT_FALSE(later);
}

}  // namespace
}  // namespace pkmesh
