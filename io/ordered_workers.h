// SPDX-License-Identifier: Apache-2.0
// A queue with threads inside: results leave in the order in which their inputs came, whoever was quicker.
// An exception in the work is rethrown by take(), in its turn.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "runtime/check.h"

namespace pkmesh {

template <class Input, class Output>
class OrderedWorkers {
 public:
  OrderedWorkers(int threads, std::function<Output(Input&&)> work) : work_(std::move(work)) {
    try {
      for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
    } catch (const std::system_error& error) {  // as many as there may be
      if (threads_.empty()) user_error("no thread can be started: {}; see ulimit -u and -v", error.what());
    }
  }
  ~OrderedWorkers() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      tasks_.clear();
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  OrderedWorkers(const OrderedWorkers&) = delete;
  OrderedWorkers& operator=(const OrderedWorkers&) = delete;

  // Inputs whose results were not taken yet. The caller bounds it.
  size_t in_flight() const { return results_.size(); }

  void put(Input input) {
    std::packaged_task<Output()> task([this, held = std::move(input)]() mutable { return work_(std::move(held)); });
    results_.push_back(task.get_future());
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
  }

  // The oldest result; waits for it.
  Output take() {
    auto result = std::move(results_.front());
    results_.pop_front();
    return result.get();
  }

 private:
  void run() {
    while (true) {
      std::packaged_task<Output()> task;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }

  std::function<Output(Input&&)> work_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::packaged_task<Output()>> tasks_;  // guarded by mutex_
  bool stopping_ = false;                           // guarded by mutex_
  std::deque<std::future<Output>> results_;         // the caller's
  std::vector<std::thread> threads_;
};

}  // namespace pkmesh
