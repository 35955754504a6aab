// SPDX-License-Identifier: Apache-2.0
// The program's own calls of CUDA's run time. The emulation ends the program where a thread without a device would get
// device 0 and a context there; a rank's threads must not, whatever GPU the rank computes on.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <functional>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "comm/self.h"
#include "layers/attention.h"
#include "runtime/buffer.h"
#include "runtime/check.h"
#include "runtime/log.h"

namespace pkmesh {
namespace {

constexpr Device kGpu = {DeviceKind::kCuda, 3};

void on_a_thread_of_its_own(const std::function<void()>& body) {
  std::thread(body).join();
}

// One test: before the first stream this process must have used no device.
TEST(CudaDevice, NoThreadTakesDevice0) {
  const float on_host = 0;
  EXPECT_FALSE(on_device(&on_host)) << "while no device was ever used";
  SelfCommunicator world;
  std::vector<float> values = {1.0F};
  world.all_reduce(std::span(values), Reduction::kSum, Purpose::kGate);  // as a rank with device: CPU does

  Stream stream(kGpu);
  std::optional<Buffer<float>> memory(std::in_place, kGpu, 4);
  std::optional<Buffer<float>> pinned(std::in_place, kGpu, 4, MemoryKind::kHost);
  std::optional<Event> event(kGpu);
  event->record(stream);
  on_a_thread_of_its_own([&] { EXPECT_FALSE(event->reached()); });
  stream.synchronize();
  on_a_thread_of_its_own([&] { EXPECT_TRUE(event->reached()); });
  on_a_thread_of_its_own([&] { event.reset(); });  // the watchdog drops events of what is done
  on_a_thread_of_its_own([&] {
    EXPECT_TRUE(on_device(memory->data()));
    EXPECT_FALSE(on_device(&on_host));
    EXPECT_FALSE(on_device(nullptr));
  });
  on_a_thread_of_its_own([&] { memory.reset(); });
  on_a_thread_of_its_own([&] { pinned.reset(); });
}

// After a kernel's fault every call fails, whatever it asks for.
TEST(CudaDevice, OnlyOutOfMemoryIsForTheUserToMend) {
  Stream stream(kGpu);
  for (const MemoryKind kind : {MemoryKind::kDevice, MemoryKind::kHost}) {
    emulation::fail_next(cudaErrorMemoryAllocation);
    EXPECT_THROW(Buffer<float>(kGpu, 4, kind), UserError);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "for the next launch to find";
    emulation::fail_next(cudaErrorIllegalAddress);
    EXPECT_THROW(Buffer<float>(kGpu, 4, kind), InternalError);
  }
  cudaGetLastError();
}

TEST(CudaDevice, OnlyAnAddressThatCudaDoesNotKnowIsTheHosts) {
  Stream stream(kGpu);
  const Buffer<float> memory(kGpu, 4);
  emulation::fail_next(cudaErrorInvalidValue);
  EXPECT_FALSE(on_device(memory.data()));
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  emulation::fail_next(cudaErrorIllegalAddress);
  EXPECT_THROW(on_device(memory.data()), InternalError);
  cudaGetLastError();
}

TEST(CudaDevice, ADriverThatCannotBeUsedIsSaidOnce) {
  const auto warning_of = [](cudaError_t error) {
    emulation::fail_next(error);
    testing::internal::CaptureStderr();
    start_log(0);
    EXPECT_EQ(device_count(DeviceKind::kCuda), 0);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(warning_of(cudaErrorNoDevice), "");
  emulation::driver_version = 0;
  EXPECT_EQ(warning_of(cudaErrorInsufficientDriver), "") << "what CUDA says where there is no driver";
  emulation::driver_version = 12040;
  const std::string warning = warning_of(cudaErrorInsufficientDriver);
  EXPECT_NE(warning.find("cudaErrorInsufficientDriver: as the emulation has it (the driver knows CUDA 12.4, this "
                         "program is built for 13.0)"),
            std::string::npos)
      << warning;
  EXPECT_EQ(warning_of(cudaErrorInsufficientDriver), "");
  EXPECT_EQ(device_count(DeviceKind::kCuda), emulation::kDevices);
}

TEST(CudaDevice, EachHasAnIdentity) {
  const Device next{DeviceKind::kCuda, kGpu.index + 1};
  EXPECT_EQ(identity(kGpu), identity(kGpu));
  EXPECT_NE(identity(kGpu), identity(next));
}

TEST(CudaDevice, AttentionSaysThatTuringIsTooSmall) {
  constexpr AttentionShape kShape = {.sequences = 1, .context = 5, .heads = 1};
  Stream stream(kGpu);
  const auto matrix = [](int64_t rows, int64_t columns) { return Buffer<float>(kGpu, rows * columns); };
  const auto qkv = matrix(5, 3 * 8);
  const auto output = matrix(5, 8);
  const auto logsumexp = matrix(1, 5);
  const auto dqkv = matrix(5, 3 * 8);
  const auto forward = [&] {
    attention_forward(stream, kShape, qkv.view().reshape(5, 24), {}, output.view().reshape(5, 8),
                      logsumexp.view().reshape(1, 5));
  };
  const auto backward = [&] {
    attention_backward(stream, kShape, qkv.view().reshape(5, 24), output.view().reshape(5, 8),
                       logsumexp.view().reshape(1, 5), output.view().reshape(5, 8), {}, dqkv.view().reshape(5, 24));
  };
  const size_t most = std::exchange(emulation::shared_most, size_t{64} << 10);
  EXPECT_NO_THROW(forward());
  EXPECT_THROW(backward(), UserError);
  EXPECT_NO_THROW(check_attention_fits(kGpu, 64, /*trains=*/false));
  EXPECT_THROW(check_attention_fits(kGpu, 128, /*trains=*/false), UserError);
  for (const int64_t width : {8, 128, 256}) EXPECT_THROW(check_attention_fits(kGpu, width, /*trains=*/true), UserError);
  emulation::shared_most = most;
  EXPECT_NO_THROW(backward());
  for (const int64_t width : {8, 128, 256}) EXPECT_NO_THROW(check_attention_fits(kGpu, width, /*trains=*/true));
  stream.synchronize();
}

}  // namespace
}  // namespace pkmesh
