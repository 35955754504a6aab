// SPDX-License-Identifier: Apache-2.0
// Compiled without sanitizers: what this file writes is no kernel's doing.
//
// There are two sets of fibers, barriers and shared memory. Blocks use them in turn, so that to ThreadSanitizer two
// neighbouring blocks are as unordered as they are on a GPU.
#include "tests/cuda_on_cpu/grid.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "tests/cuda_on_cpu/device_memory.h"
#include "tests/cuda_on_cpu/fiber.h"

namespace emulation {

uint3 thread_index;
dim3 block_index, block_size, grid_size;

namespace {

// Threads that wait for each other.
struct Barrier {
  int alive = 0;
  int arrived = 0;
  unsigned passed = 0;  // how often all have arrived
  Where where{};
  char order[2] = {};  // places for released(): by turns, for who is early may be back before the last has left

  void begin() {
    alive = arrived = 0;
    passed = 0;
  }
  void open_if_complete() {
    if (arrived < alive || arrived == 0) return;
    arrived = 0;
    ++passed;
  }
};

// What lanes give each other lies in two places, used by turns, as Barrier::order is.
struct Warp {
  Barrier barrier;
  uint64_t given[2][kWarp];
  unsigned gave[2] = {};  // those that were present when all had given
  unsigned present = 0;
  bool held_back = false;

  void open_if_complete() {
    gave[barrier.passed % 2] = present;
    barrier.open_if_complete();
  }
};

struct Set;

struct Thread {
  Thread(Set& of, int n) : set(of), number(n), fiber(main, this) {}
  static void main(void* self);
  bool can_run() const { return !ended && (waits_for == nullptr || waits_for->passed != passed_before); }

  Set& set;
  const int number;  // within the block
  uint3 index{};
  bool ended = true;
  const Barrier* waits_for = nullptr;
  unsigned passed_before = 0;
  Fiber fiber;
};

struct Set {
  int number = 0;
  std::vector<std::unique_ptr<Thread>> threads;  // as many as the largest block so far
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<Thread*> turns;
  Barrier block;
  FencedMemory dynamic = FencedMemory(kSharedMost);
  char ended = 0;  // a place for released()
};

struct Random {
  uint64_t state;
  uint64_t operator()() {  // splitmix64
    uint64_t x = state += 0x9E3779B97F4A7C15U;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
    return x ^ (x >> 31);
  }
};

enum class Order { kForwards, kBackwards, kRandom };

std::unique_ptr<Set> sets[2];
Thread* running = nullptr;
const std::function<void()>* body = nullptr;
uint64_t blocks_run = 0;
uint64_t launches = 0;
char grid_begun = 0;
char grid_ended = 0;

uint64_t seed() {
  static const uint64_t value = [] {
    const char* const text = std::getenv("PKMESH_EMULATED_SEED");
    return text == nullptr ? uint64_t{1} : std::strtoull(text, nullptr, 10);
  }();
  return value;
}

Warp& warp_of(const Thread& thread) {
  return *thread.set.warps[static_cast<size_t>(thread.number / kWarp)];
}

void arrive(Barrier& barrier, Where where) {
  if (barrier.arrived == 0) barrier.where = where;
  if (barrier.where != where) {
    std::fprintf(stderr, "%s in line %d, while others wait for %s in line %d\n", where.what, where.line,
                 barrier.where.what, barrier.where.line);
    die("threads wait together at different places");
  }
  running->waits_for = &barrier;
  running->passed_before = barrier.passed;
  ++barrier.arrived;
}

void leave() {  // even if all are there: others may go first
  Thread& self = *running;
  self.fiber.leave();
  self.waits_for = nullptr;
}

void Thread::main(void* argument) {  // one thread after the other, of one block after the other
  Thread& self = *static_cast<Thread*>(argument);
  while (true) {
    acquired(&grid_begun);
    acquired(&self.set.ended);
    (*body)();
    released(&self.set.ended);
    released(&grid_ended);
    self.ended = true;
    --self.set.block.alive;
    self.set.block.open_if_complete();
    Warp& warp = warp_of(self);
    --warp.barrier.alive;
    warp.present &= ~(1U << lane());
    warp.open_if_complete();
    self.fiber.leave();
  }
}

void begin_block(Set& set, int threads) {
  while (std::ssize(set.threads) < threads)
    set.threads.push_back(std::make_unique<Thread>(set, static_cast<int>(set.threads.size())));
  while (std::ssize(set.warps) * kWarp < threads) set.warps.push_back(std::make_unique<Warp>());
  set.block.begin();
  set.block.alive = threads;
  for (const auto& warp : set.warps) {
    warp->barrier.begin();
    warp->present = 0;
    warp->held_back = false;
  }
  for (int i = 0; i < threads; ++i) {
    Thread& thread = *set.threads[static_cast<size_t>(i)];
    const auto n = static_cast<unsigned>(i);
    thread.index = {n % block_size.x, n / block_size.x % block_size.y, n / block_size.x / block_size.y};
    thread.ended = false;
    thread.waits_for = nullptr;
    Warp& warp = warp_of(thread);
    ++warp.barrier.alive;
    warp.present |= 1U << (i % kWarp);
  }
}

// Each thread runs as far as it can, in turns. At random: in another order, and some warps not at all, for some rounds.
void run_block(Set& set, int threads, Order order, Random& random) {
  begin_block(set, threads);
  std::vector<Thread*>& turns = set.turns;
  turns.clear();
  for (int i = 0; i < threads; ++i)
    turns.push_back(set.threads[static_cast<size_t>(order == Order::kBackwards ? threads - 1 - i : i)].get());
  bool stuck = false;
  for (int64_t round = 0, next = 0; set.block.alive > 0; ++round) {
    if (order == Order::kRandom && (round == next || stuck)) {
      next = round + (int64_t{1} << random() % 8);
      for (size_t i = turns.size(); i > 1; --i) std::swap(turns[i - 1], turns[(random() >> 32) * i >> 32]);
      for (const auto& warp : set.warps) warp->held_back = !stuck && random() % 2 == 0;
    }
    bool any = false;
    for (Thread* const thread : turns) {
      if (!thread->can_run() || warp_of(*thread).held_back) continue;
      any = true;
      running = thread;
      thread_index = thread->index;
      thread->fiber.resume();
    }
    if (stuck && !any) die("all threads wait, not all for the same thing");
    stuck = !any;
  }
}

// What the lanes gave; valid until this lane's next exchange. `present`: a bit for each that gave something.
const uint64_t* exchange(Where where, unsigned lanes, uint64_t mine, unsigned& present) {
  Warp& warp = warp_of(*running);
  const unsigned place = warp.barrier.passed % 2;
  warp.given[place][lane()] = mine;
  arrive(warp.barrier, where);
  warp.open_if_complete();
  leave();
  present = warp.gave[place];
  if ((present & ~lanes) != 0) die("some lanes of the warp are left out: not emulated");
  return warp.given[place];
}

// Not by memset(), which ThreadSanitizer would take for a write by whoever runs.
void fill_with_nans(void* memory, size_t bytes) {
  auto* const byte = static_cast<volatile unsigned char*>(memory);
  for (size_t i = 0; i < bytes; ++i) byte[i] = 0xFF;
}

}  // namespace

void die(const char* what) {
  std::fprintf(stderr, "emulated kernel, block (%u, %u, %u), thread (%u, %u, %u): %s\n", block_index.x, block_index.y,
               block_index.z, thread_index.x, thread_index.y, thread_index.z, what);
  std::abort();
}

void check_bounds(int most_threads, int) {
  if (block_size.x * block_size.y * block_size.z > static_cast<unsigned>(most_threads))
    die("more threads than its __launch_bounds__ allow");
}

void wait_for_block(Where where) {
  Barrier& barrier = running->set.block;
  char* const place = &barrier.order[barrier.passed % 2];
  released(place);
  arrive(barrier, where);
  barrier.open_if_complete();
  leave();
  acquired(place);
}

void wait_for_warp(Where where) {
  Warp& warp = warp_of(*running);
  char* const place = &warp.barrier.order[warp.barrier.passed % 2];
  released(place);
  arrive(warp.barrier, where);
  warp.open_if_complete();
  leave();
  acquired(place);
}

int lane() {
  return running->number % kWarp;
}

uint64_t shuffle_xor(Where where, unsigned lanes, uint64_t mine, int mask) {
  unsigned present = 0;
  const uint64_t* const given = exchange(where, lanes, mine, present);
  const int from = lane() ^ mask;
  if ((present >> from & 1) == 0) die("a shuffle with a lane that has ended");
  return given[from];
}

unsigned lanes_that_gave(Where where, unsigned lanes, uint64_t mine, uint64_t wanted) {
  unsigned present = 0;
  const uint64_t* const given = exchange(where, lanes, mine, present);
  unsigned result = 0;
  for (int i = 0; i < kWarp; ++i)
    if ((present >> i & 1) != 0 && given[i] == wanted) result |= 1U << i;
  return result;
}

void* shared_array(SharedArray& array, size_t bytes) {
  const auto set = static_cast<size_t>(running->set.number);
  FencedMemory*& memory = array.memory[set];
  if (memory == nullptr) {
    const Unwatched scope;
    memory = new FencedMemory(bytes);
    memory->resize(bytes);
  }
  if (array.block[set] != blocks_run) {
    array.block[set] = blocks_run;
    fill_with_nans(memory->begin(), bytes);
  }
  return memory->begin();
}

void* dynamic_shared() {
  return running->set.dynamic.begin();
}

void run_grid(const Shape& shape, const std::function<void()>& thread) {
  if (running != nullptr) die("a kernel launches a kernel: not emulated");
  const auto threads = static_cast<int>(shape.block.x * shape.block.y * shape.block.z);
  body = &thread;
  grid_size = shape.grid;
  block_size = shape.block;
  Random random{seed() * 0x10001U + ++launches};
  const auto order = static_cast<Order>(random() % 3);
  const uint64_t blocks = uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z;
  const uint64_t first = order == Order::kRandom ? random() % blocks : 0;
  released(&grid_begun);
  for (uint64_t n = 0; n < blocks; ++n) {
    const uint64_t i = order == Order::kBackwards ? blocks - 1 - n : (n + first) % blocks;
    block_index = {static_cast<unsigned>(i % shape.grid.x), static_cast<unsigned>(i / shape.grid.x % shape.grid.y),
                   static_cast<unsigned>(i / shape.grid.x / shape.grid.y)};
    std::unique_ptr<Set>& set = sets[++blocks_run % 2];
    if (set == nullptr) {
      set = std::make_unique<Set>();
      set->number = static_cast<int>(blocks_run % 2);
    }
    if (set->dynamic.bytes() != shape.shared) set->dynamic.resize(shape.shared);
    fill_with_nans(set->dynamic.begin(), shape.shared);
    run_block(*set, threads, order, random);
  }
  running = nullptr;
  acquired(&grid_ended);
}

}  // namespace emulation
