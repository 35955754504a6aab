// SPDX-License-Identifier: Apache-2.0
// The asynchronous device: the CUDA side of runtime/device.cpp's seam, for memory that travels. There are no ops.
#include "async_device.h"

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "runtime/check.h"
#include "runtime/device.h"

namespace pkmesh {
namespace {

constexpr uintptr_t kDevice = uintptr_t{1} << 62;  // set in the address of device memory

std::atomic<int> g_devices{1};
std::atomic<bool> g_device_fails{false};

// A moment in the order of a stream.
class Mark {
 public:
  void reach() {
    const std::lock_guard lock(mutex_);
    reached_ = true;
    at_ = Clock::now();
    changed_.notify_all();
  }
  bool reached() {
    const std::lock_guard lock(mutex_);
    return reached_;
  }
  Clock::time_point wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return reached_; });
    return at_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;
  Clock::time_point at_;
};

class EmulatedStream {
 public:
  EmulatedStream() : thread_([this] { work(); }) {}
  ~EmulatedStream() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  void queue(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_all();
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stop_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      for (int i = 0; i < 3; ++i) std::this_thread::yield();  // the host gets ahead
      task();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool stop_ = false;
  std::thread thread_;
};

struct EmulatedEvent {
  std::mutex mutex;
  std::shared_ptr<Mark> mark;  // of the last record(); null before
  std::shared_ptr<Mark> last() {
    const std::lock_guard lock(mutex);
    return mark;
  }
};

EmulatedStream& stream_of(void* native) {
  return *static_cast<EmulatedStream*>(native);
}
EmulatedEvent& event_of(void* native) {
  return *static_cast<EmulatedEvent*>(native);
}

}  // namespace

void emulate_devices(int count) {
  g_devices = count;
}

void let_device_fail(bool fail) {
  g_device_fails = fail;
}

void on_emulated_stream(void* native, std::function<void()> task) {
  stream_of(native).queue(std::move(task));
}

void* behind(const void* memory) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(memory) & ~kDevice);
}

namespace cuda {

int device_count() {
  return g_devices;
}

int multiprocessors(int) {
  return kMultiprocessors;
}

std::shared_ptr<void> make_stream(int) {
  return std::make_shared<EmulatedStream>();
}

std::shared_ptr<void> make_event(int, bool) {
  return std::make_shared<EmulatedEvent>();
}

void record(void* event, void* stream) {
  auto mark = std::make_shared<Mark>();
  {
    const std::lock_guard lock(event_of(event).mutex);
    event_of(event).mark = mark;
  }
  stream_of(stream).queue([mark] { mark->reach(); });
}

void hold(void* event, void* stream) {
  if (auto mark = event_of(event).last()) stream_of(stream).queue([mark] { mark->wait(); });
}

void synchronize_event(void* event) {
  if (auto mark = event_of(event).last()) mark->wait();
}

bool reached(int, void* event) {
  PKM_CHECK(!g_device_fails, "a kernel's fault");
  const auto mark = event_of(event).last();
  return mark == nullptr || mark->reached();
}

double milliseconds(void* from, void* to) {
  const auto begin = event_of(from).last()->wait();
  return std::chrono::duration<double, std::milli>(event_of(to).last()->wait() - begin).count();
}

void synchronize(void* stream) {
  PKM_CHECK(!g_device_fails, "a kernel's fault");
  const auto mark = std::make_shared<Mark>();
  stream_of(stream).queue([mark] { mark->reach(); });
  mark->wait();
}

std::shared_ptr<std::byte> allocate_host(int, int64_t bytes) {
  return pkmesh::allocate({}, bytes);
}

std::shared_ptr<std::byte> allocate(int, int64_t bytes) {
  auto memory = pkmesh::allocate({}, bytes);
  auto* const address = reinterpret_cast<std::byte*>(reinterpret_cast<uintptr_t>(memory.get()) | kDevice);
  return {std::move(memory), address};
}

bool on_device(const void* memory) {
  return (reinterpret_cast<uintptr_t>(memory) & kDevice) != 0;
}

void copy(void* stream, const void* from, void* to, int64_t bytes) {
  stream_of(stream).queue([=] { std::memcpy(behind(to), behind(from), static_cast<size_t>(bytes)); });
}

void clear(void* stream, void* memory, int64_t bytes) {
  stream_of(stream).queue([=] { std::memset(behind(memory), 0, static_cast<size_t>(bytes)); });
}

}  // namespace cuda
}  // namespace pkmesh
