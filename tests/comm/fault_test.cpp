// SPDX-License-Identifier: Apache-2.0
// Jobs under mpirun in which one rank goes wrong: all ranks must be gone within seconds, with the right exit code.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

namespace pkmesh {
namespace {

struct Outcome {
  int exit_code;
  double seconds;
  std::string output;
};

Outcome run(const std::string& launcher, const std::string& how) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string command = launcher + " " PKMESH_FAULT_PROGRAM " " + how + " 2>&1 </dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  Outcome outcome{-1, 0, ""};
  if (pipe == nullptr) return outcome;
  std::array<char, 4096> buffer{};
  while (const size_t count = fread(buffer.data(), 1, buffer.size(), pipe)) outcome.output.append(buffer.data(), count);
  const int status = pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return outcome;
}

constexpr double kSoon = 20;  // seconds, on a machine that is busy with other tests

// Over MPI alone, and on device memory over each kind of link.
class FaultsOf : public testing::TestWithParam<std::string> {
 protected:
  static Outcome run_on_3_ranks(const std::string& how, const std::string& environment = "") {
    return run(environment + " " PKMESH_MPIEXEC " -n 3", how + " " + GetParam());
  }
};
// The kinds that the fault program was built with; only `one` of them, unless it is empty.
std::vector<std::string> kinds(const std::string& one = "") {
  std::vector<std::string> all{PKMESH_FAULT_KINDS};
  std::erase_if(all, [&](const std::string& kind) { return !one.empty() && kind != one; });
  return all;
}
INSTANTIATE_TEST_SUITE_P(Faults, FaultsOf, testing::ValuesIn(kinds()), [](const auto& kind) { return kind.param; });

TEST_P(FaultsOf, AHealthyJobEndsWithZero) {
  const Outcome outcome = run_on_3_ranks("nothing");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
}

TEST(Faults, WithoutALauncherItIsAWorldOfOne) {
  const Outcome outcome = run("", "nothing");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
}

TEST(Faults, LooseSlurmTasksAreRefused) {
  const Outcome outcome = run("SLURM_STEP_NUM_TASKS=4", "nothing");
  EXPECT_EQ(outcome.exit_code, 3);
  EXPECT_NE(outcome.output.find("use srun --mpi=pmix"), std::string::npos) << outcome.output;
}

TEST_P(FaultsOf, AbortEndsTheJobWithItsCode) {
  const Outcome outcome = run_on_3_ranks("abort");
  EXPECT_EQ(outcome.exit_code, 2) << outcome.output;
  EXPECT_LT(outcome.seconds, kSoon);
}

TEST_P(FaultsOf, AnExceptionOnOneRankEndsTheJob) {
  for (const std::string how : {"throw", "throw_early"}) {  // the latter with sums under way
    const Outcome outcome = run_on_3_ranks(how);
    EXPECT_EQ(outcome.exit_code, 1) << how << ": " << outcome.output;
    EXPECT_NE(outcome.output.find("error: rank 1 has had enough"), std::string::npos) << how << ": " << outcome.output;
    EXPECT_LT(outcome.seconds, kSoon) << how;
  }
}

TEST(Faults, AnExceptionAheadOfTheOthersEndsTheJob) {
  const Outcome outcome = run(PKMESH_MPIEXEC " -n 3", "throw_ahead mpi");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_NE(outcome.output.find("error: rank 1 has had enough"), std::string::npos) << outcome.output;
  EXPECT_LT(outcome.seconds, kSoon);
}

TEST_P(FaultsOf, ARankThatDiesEndsTheJob) {
  const Outcome outcome = run_on_3_ranks("die");
  EXPECT_NE(outcome.exit_code, 0) << outcome.output;
  EXPECT_LT(outcome.seconds, kSoon);
}

TEST_P(FaultsOf, AHangIsNamedAndEndsTheJob) {
  const Outcome outcome = run_on_3_ranks("hang");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_LT(outcome.seconds, kSoon);
  EXPECT_NE(outcome.output.find("in all_reduce for dense gradients, 16 bytes, call 2 (step 17)"), std::string::npos)
      << outcome.output;
  EXPECT_NE(outcome.output.find("rank 1 is not there: it left barrier"), std::string::npos) << outcome.output;
}

TEST_P(FaultsOf, CountsThatDisagreeEndTheJob) {
  const Outcome outcome = run_on_3_ranks("counts");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_LT(outcome.seconds, kSoon);
}

// Whichever of the two others is first: 8 bytes are what both expect.
TEST(Faults, AMessageOfAnotherLengthNamesItsSender) {
  for (const auto& [how, sent] : {std::pair{"fewer", "4"}, {"more", "more"}}) {
    const Outcome outcome = run(PKMESH_MPIEXEC " -n 3", std::string(how) + " mpi");
    EXPECT_EQ(outcome.exit_code, 1) << how << ": " << outcome.output;
    EXPECT_NE(outcome.output.find(std::string(" expects 8 bytes from rank 1, which sent ") + sent), std::string::npos)
        << how << ": " << outcome.output;
  }
}

// NCCL works behind the host's back.
class FaultsOfNccl : public FaultsOf {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(FaultsOfNccl);
INSTANTIATE_TEST_SUITE_P(Faults, FaultsOfNccl, testing::ValuesIn(kinds("nccl")));

TEST_P(FaultsOfNccl, ALostConnectionIsNamedAndEndsTheJobWatchedOrNot) {
  for (const std::string how : {"lose", "lose_unwatched"}) {
    const Outcome outcome = run_on_3_ranks(how, "PKMESH_FAKE_NCCL_LOSE='1 3' timeout 60");  // the first after warm-up
    EXPECT_EQ(outcome.exit_code, 1) << how << ": " << outcome.output;
    EXPECT_LT(outcome.seconds, kSoon) << how;
    // By the watchdog's thread, or by the rank's own next call.
    EXPECT_NE(outcome.output.find(" on rank 1 ("), std::string::npos) << how << ": " << outcome.output;
    EXPECT_NE(outcome.output.find("exchange link: remote process exited or there was a network error: the connection"),
              std::string::npos)
        << how << ": " << outcome.output;
  }
}

}  // namespace
}  // namespace pkmesh
