// SPDX-License-Identifier: Apache-2.0
// In a steady step nothing of the step's size is allocated: buffers grow in the first steps and are used again. This
// program counts what is asked of operator new and aligned_alloc, by whichever library.
#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "comm/self.h"
#include "tests/io/temporary_folder.h"
#include "tests/launcher/tiny_run.h"

namespace {

std::atomic<int64_t> g_allocations;
std::atomic<int64_t> g_largest;

void* counted(size_t bytes, size_t alignment) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  const auto size = static_cast<int64_t>(bytes);
  for (int64_t seen = g_largest; size > seen && !g_largest.compare_exchange_weak(seen, size);) {
  }
  void* memory = nullptr;
  return posix_memalign(&memory, std::max(alignment, sizeof(void*)), std::max<size_t>(bytes, 1)) == 0 ? memory
                                                                                                      : nullptr;
}

void* counted_or_throw(size_t bytes, size_t alignment) {
  void* memory = counted(bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(size_t bytes) {
  return counted_or_throw(bytes, alignof(std::max_align_t));
}
void* operator new[](size_t bytes) {
  return counted_or_throw(bytes, alignof(std::max_align_t));
}
void* operator new(size_t bytes, std::align_val_t alignment) {
  return counted_or_throw(bytes, static_cast<size_t>(alignment));
}
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return counted_or_throw(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, size_t, std::align_val_t) noexcept {
  std::free(memory);
}
extern "C" void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  return counted(bytes, alignment);
}

namespace pkmesh {
namespace {

// Wide enough for the large products: 24 sequences of 16 tokens, width 64.
config::Config wide(const std::vector<std::string>& more) {
  std::vector<std::string> overrides = {"model.width=64", "model.heads=4", "train.batch=24"};
  overrides.insert(overrides.end(), more.begin(), more.end());
  return tiny::config(overrides);
}

class SteadyStep : public testing::TestWithParam<std::vector<std::string>> {};

TEST_P(SteadyStep, AllocatesNothingOfItsSize) {
  TemporaryFolder folder;
  const Tokens tokens = written_tokens(folder.path(), tiny::ids(5000), tiny::kVocabulary);
  SelfCommunicator world;
  Trainer trainer = tiny::trainer(wide(GetParam()), world, tokens);
  tiny::losses(trainer, 4);
  g_allocations = 0;
  g_largest = 0;
  for (int i = 0; i < 5; ++i) trainer.step();
  const int64_t allocations = g_allocations;
  const int64_t largest = g_largest;
  RecordProperty("allocations_per_step", static_cast<int>(allocations / 5));
  // What is left is small and does not grow with the model: names, requests, a library's argument lists. One vector of
  // a number per token would be 1,536 bytes.
  EXPECT_LT(largest, 1024) << "bytes, the largest of " << allocations << " allocations in 5 steps";
}

INSTANTIATE_TEST_SUITE_P(Trainer, SteadyStep,
                         testing::Values(std::vector<std::string>{}, std::vector<std::string>{"train.precision=BF16"},
                                         std::vector<std::string>{
                                             "model.memory.0.sub_keys=80"},  // rows are read seldom
                                         std::vector<std::string>{"train.accumulate=2", "model.dropout=0.1"}));

}  // namespace
}  // namespace pkmesh
