// SPDX-License-Identifier: Apache-2.0
// The seam of runtime/device.cpp: memory, streams and events. A device's memory is one reserved stretch of addresses,
// so that one call opens and closes all of it.
#include "tests/emulated_device/emulated_device.h"

#include <execinfo.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/check.h"
#include "runtime/random.h"
#include "tests/comm/async_device.h"

namespace pkmesh {
namespace {

constexpr size_t kReserved = size_t{4} << 30;
constexpr size_t kPage = 4096;
constexpr size_t kHugePage =
    size_t{2} << 20;          // what is opened and closed: page by page it would take most of a test's time
constexpr int kPolls = 1000;  // as often an event is asked about before it is reached

thread_local std::vector<std::string> t_ranges;
thread_local emulated::Costs t_costs;

void count(std::map<std::string, int64_t>& costs) {
  ++costs[t_ranges.empty() ? "no range" : t_ranges.back()];
}

struct FakeStream;

// Streams of several ranks may share a device: whoever works on it holds the lock.
struct FakeDevice {
  std::recursive_mutex mutex;
  std::byte* memory = nullptr;
  size_t used = 0;
  std::multimap<size_t, std::byte*> freed;  // by size
  int open = 0;                             // > 0: its memory can be touched
  std::vector<FakeStream*> streams;

  bool owns(const void* address) const {
    const auto* const byte = static_cast<const std::byte*>(address);
    return memory != nullptr && byte >= memory && byte < memory + kReserved;
  }
  void protect(int rights) const {
    const size_t bytes = (used + kHugePage - 1) / kHugePage * kHugePage;
    if (bytes > 0) PKM_CHECK(mprotect(memory, bytes, rights) == 0, "mprotect of {} bytes", bytes);
  }
};

std::array<FakeDevice, emulated::kDevices> g_devices;
std::atomic<uint64_t> g_seed = 0;
std::atomic<uint64_t> g_draws = 0;

struct Opened {
  explicit Opened(FakeDevice& opened) : device(opened) {
    if (device.open++ == 0) device.protect(PROT_READ | PROT_WRITE);
  }
  ~Opened() {
    if (--device.open == 0) device.protect(PROT_NONE);
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  FakeDevice& device;
};

// Items have numbers in the order in which they were queued; those below `done` have run.
struct FakeStream {
  explicit FakeStream(FakeDevice& of) : device(of) {
    const std::lock_guard lock(device.mutex);
    device.streams.push_back(this);
  }
  ~FakeStream() {
    const std::lock_guard lock(device.mutex);
    run_to(queued());
    std::erase(device.streams, this);
  }
  FakeStream(const FakeStream&) = delete;
  FakeStream& operator=(const FakeStream&) = delete;

  uint64_t queued() const { return done + items.size(); }
  void run_to(uint64_t end) {
    if (done >= end) return;
    const Opened opened(device);
    while (done < end) {
      const auto item = std::move(items.front());
      items.pop_front();
      ++done;
      item();
    }
  }

  FakeDevice& device;
  std::deque<std::function<void()>> items;
  uint64_t done = 0;
};

struct FakeEvent {
  FakeStream* stream = nullptr;  // may be gone: then all of it has run
  FakeDevice* device = nullptr;  // null: never recorded
  uint64_t place = 0;
  int polls = 0;
  bool reached() {
    if (device == nullptr) return true;
    const std::lock_guard lock(device->mutex);
    if (++polls >= kPolls) reach();
    return std::ranges::find(device->streams, stream) == device->streams.end() || stream->done >= place;
  }
  void reach() const {
    if (device == nullptr) return;
    const std::lock_guard lock(device->mutex);
    if (std::ranges::find(device->streams, stream) != device->streams.end()) stream->run_to(place);
  }
};

FakeStream& as_stream(void* stream) {
  return *static_cast<FakeStream*>(stream);
}

FakeDevice& device_at(int index) {
  FakeDevice& device = g_devices.at(static_cast<size_t>(index));
  const std::lock_guard lock(device.mutex);
  if (device.memory == nullptr) {
    void* memory = mmap(nullptr, kReserved + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    PKM_CHECK(memory != MAP_FAILED, "no addresses for an emulated device");
    size_t space = kReserved + kHugePage;
    device.memory = static_cast<std::byte*>(std::align(kHugePage, kReserved, memory, space));
    madvise(device.memory, kReserved, MADV_HUGEPAGE);  // a hint
  }
  return device;
}

void queue(FakeStream& stream, std::function<void()> work) {
  FakeDevice& device = stream.device;
  const std::lock_guard lock(device.mutex);
  stream.items.push_back(std::move(work));
  if (g_seed == 0) return;
  const auto drawn = Random(g_seed, "emulated order").block(g_draws++);
  if (drawn[0] % 3 != 0) return;
  const Opened opened(device);
  for (size_t i = 0; i < device.streams.size(); ++i) {
    FakeStream& other = *device.streams[(i + drawn[1]) % device.streams.size()];
    other.run_to(std::min(other.queued(), other.done + (drawn[2] >> (4 * i % 28)) % 8));
  }
}

// What a device with nothing left to do looks like: before memory goes.
void finish_all(FakeDevice& device) {
  for (size_t i = 0; i < device.streams.size(); ++i) device.streams[i]->run_to(device.streams[i]->queued());
}

void write_line(const char* text) {
  [[maybe_unused]] const auto written = write(STDERR_FILENO, text, std::strlen(text));
}

void on_fault(int signal, siginfo_t* info, void*) {
  for (const FakeDevice& device : g_devices)
    if (device.owns(info->si_addr)) {
      write_line("emulated device: memory of a device was touched by the host, or by a stream of another device\n");
      std::array<void*, 64> frames{};
      backtrace_symbols_fd(frames.data(), backtrace(frames.data(), static_cast<int>(frames.size())), STDERR_FILENO);
    }
  std::signal(signal, SIG_DFL);
  raise(signal);
}

const bool g_watching = [] {
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  return sigaction(SIGSEGV, &action, nullptr) == 0;
}();

}  // namespace

void emulated::set_order(uint64_t seed) {
  g_seed = seed;
  g_draws = 0;
}

void emulated::enqueue(Stream& stream, std::function<void()> work) {
  enqueue(stream.native(), std::move(work));
}

void emulated::enqueue(void* native, std::function<void()> work) {
  queue(as_stream(native), std::move(work));
}

emulated::Costs emulated::take_costs() {
  return std::exchange(t_costs, {});
}

namespace cuda {

void push_range(std::string_view name);
void pop_range();

void push_range(std::string_view name) {
  t_ranges.emplace_back(name);
}

void pop_range() {
  t_ranges.pop_back();
}

int device_count() {
  static const char* const asked = std::getenv("PKMESH_EMULATED_DEVICES");
  return asked == nullptr ? emulated::kDevices : std::min(emulated::kDevices, std::atoi(asked));
}

int64_t total_memory(int) {
  return static_cast<int64_t>(kReserved);
}

int64_t used_memory(int index) {
  return static_cast<int64_t>(device_at(index).used);
}

int multiprocessors(int) {
  return kMultiprocessors;
}

bool has_bf16(int) {
  return true;
}

// PKMESH_EMULATED_FIRST: the machine's device that is this process's first.
GpuIdentity identity(int index) {
  static const char* const first = std::getenv("PKMESH_EMULATED_FIRST");
  return {static_cast<std::byte>(index + (first == nullptr ? 0 : std::atoi(first)))};
}

std::shared_ptr<void> make_stream(int index) {
  return std::make_shared<FakeStream>(device_at(index));
}

void synchronize(void* stream) {
  count(t_costs.waits);
  const std::lock_guard lock(as_stream(stream).device.mutex);
  as_stream(stream).run_to(as_stream(stream).queued());
}

std::shared_ptr<void> make_event(int, bool) {
  return std::make_shared<FakeEvent>();
}

void record(void* event, void* stream) {
  FakeStream& of = as_stream(stream);
  const std::lock_guard lock(of.device.mutex);
  *static_cast<FakeEvent*>(event) = {&of, &of.device, of.queued()};
}

void hold(void* event, void* stream) {
  queue(as_stream(stream), [place = *static_cast<FakeEvent*>(event)] { place.reach(); });
}

void synchronize_event(void* event) {
  count(t_costs.waits);
  static_cast<FakeEvent*>(event)->reach();
}

bool reached(int, void* event) {
  return static_cast<FakeEvent*>(event)->reached();
}

double milliseconds(void*, void*) {
  return 0;
}

std::shared_ptr<std::byte> allocate(int index, int64_t bytes) {
  count(t_costs.allocations);
  FakeDevice& device = device_at(index);
  const std::lock_guard lock(device.mutex);
  const size_t size = (static_cast<size_t>(bytes) / kPage + 2) * kPage;  // a page at least between two
  std::byte* memory = nullptr;
  if (const auto former = device.freed.find(size); former != device.freed.end()) {
    memory = former->second;
    device.freed.erase(former);
    const Opened opened(device);
    std::memset(memory, 0, size);
  } else {
    if (device.used + size > kReserved) user_error("out of memory on emulated cuda:{}", index);
    memory = device.memory + device.used;
    device.used += size;
    if (device.open > 0) device.protect(PROT_READ | PROT_WRITE);
  }
  return {memory, [&device, size](std::byte* freed) {
            const std::lock_guard freeing(device.mutex);
            finish_all(device);
            const Opened opened(device);
            std::memset(freed, 0xFF, size);
            device.freed.emplace(size, freed);
          }};
}

std::shared_ptr<std::byte> allocate_host(int index, int64_t bytes) {
  count(t_costs.allocations);
  FakeDevice& device = device_at(index);
  auto* const memory = static_cast<std::byte*>(std::calloc(static_cast<size_t>(bytes) + 1, 1));
  if (memory == nullptr) user_error("out of memory: {} bytes", bytes);
  return {memory, [&device](std::byte* freed) {
            const std::lock_guard freeing(device.mutex);
            finish_all(device);
            std::free(freed);
          }};
}

bool on_device(const void* memory) {
  return std::ranges::any_of(g_devices, [&](const FakeDevice& device) { return device.owns(memory); });
}

void copy(void* stream, const void* from, void* to, int64_t bytes) {
  queue(as_stream(stream), [=] { std::memmove(to, from, static_cast<size_t>(bytes)); });
}

void clear(void* stream, void* memory, int64_t bytes) {
  queue(as_stream(stream), [=] { std::memset(memory, 0, static_cast<size_t>(bytes)); });
}

}  // namespace cuda
}  // namespace pkmesh
