// SPDX-License-Identifier: Apache-2.0
#include "launcher/threads.h"

#include <gtest/gtest.h>

#include <numeric>

namespace pkmesh {
namespace {

std::vector<int> cpus(int first, int count) {
  std::vector<int> cpus(static_cast<size_t>(count));
  std::iota(cpus.begin(), cpus.end(), first);
  return cpus;
}

// Rank `rank` of `ranks` on a host of 8 cores, bound to one core by its launcher's default.
Cores on_eight(int rank, int ranks) {
  return {.bound = {rank}, .available = cpus(0, 8), .rank = rank, .ranks = ranks, .may_bind = true};
}

TEST(Threads, FillTheCoresOfAHost) {
  const ThreadPlan one = plan_threads(on_eight(0, 1));
  EXPECT_EQ(one.threads, 8);
  EXPECT_EQ(one.cores, cpus(0, 8));
  EXPECT_EQ(one.text, "8 threads per rank (chosen), 8 cores for 1 rank");
  const ThreadPlan last_of_three = plan_threads(on_eight(2, 3));
  EXPECT_EQ(last_of_three.threads, 2);
  EXPECT_EQ(last_of_three.cores, cpus(4, 2));
  const ThreadPlan one_of_eight = plan_threads(on_eight(5, 8));
  EXPECT_EQ(one_of_eight.threads, 1);
  EXPECT_TRUE(one_of_eight.cores.empty()) << "it is where it belongs";
}

TEST(Threads, SlurmsListOfTasks) {
  EXPECT_EQ(tasks_of_node("4", 0), 4);
  EXPECT_EQ(tasks_of_node("1,3", 1), 3);
  for (int node = 0; node < 3; ++node) EXPECT_EQ(tasks_of_node("2(x3),1", node), 2);
  EXPECT_EQ(tasks_of_node("2(x3),1", 3), 1);
  for (const char* list : {"2(x3),1", "", "x", "0"}) EXPECT_FALSE(tasks_of_node(list, 4)) << list;
}

TEST(Threads, OpenMpsListOfThreads) {
  EXPECT_EQ(openmp_threads("4"), 4);
  EXPECT_EQ(openmp_threads(" 4 , 2"), 4);
  for (const char* list : {"", "0", "-1", "1.5", "1e3", "abc", "2147483648", "4,", "4,x", ","})
    EXPECT_FALSE(openmp_threads(list)) << list;
}

TEST(Threads, MoreRanksThanCoresComputeWithOneAndAreNotBound) {
  const ThreadPlan plan = plan_threads(on_eight(8, 9));
  EXPECT_EQ(plan.threads, 1);
  EXPECT_TRUE(plan.cores.empty());
  EXPECT_FALSE(plan.passive) << "a single thread waits for nobody";
}

TEST(Threads, KeepWhatTheUserSays) {
  Cores cores = on_eight(1, 2);
  cores.threads = 3;
  ThreadPlan plan = plan_threads(cores);
  EXPECT_EQ(plan.threads, 3);
  EXPECT_EQ(plan.cores, cpus(3, 3)) << "bound to one core, three threads would take turns on it";
  EXPECT_EQ(plan.text, "3 threads per rank (OMP_NUM_THREADS), 8 cores for 2 ranks");

  cores.may_bind = false;  // a chosen binding, shared by both
  plan = plan_threads(cores);
  EXPECT_TRUE(plan.cores.empty());

  const Cores own = {.bound = {2, 3}, .available = {2, 3}};  // one that is this rank's own
  EXPECT_EQ(plan_threads(own).threads, 2);
  EXPECT_TRUE(plan_threads(own).cores.empty());
}

TEST(Threads, SleepWhenTheyOutnumberTheCores) {
  Cores cores = on_eight(0, 4);
  cores.threads = 3;
  ThreadPlan plan = plan_threads(cores);
  EXPECT_TRUE(plan.passive);
  EXPECT_TRUE(plan.cores.empty());
  EXPECT_NE(plan.text.find("sleep"), std::string::npos) << plan.text;
  cores.waits = true;
  EXPECT_FALSE(plan_threads(cores).passive);
  cores.waits = false;
  cores.threads = 2;
  EXPECT_FALSE(plan_threads(cores).passive);
}

}  // namespace
}  // namespace pkmesh
