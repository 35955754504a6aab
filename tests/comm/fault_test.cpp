// SPDX-License-Identifier: Apache-2.0
// Jobs under mpirun in which one rank goes wrong: all ranks must be gone within seconds, with the right exit code.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <string>

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

Outcome run_on_3_ranks(const std::string& how) {
  return run(PKMESH_MPIEXEC " -n 3", how);
}

constexpr double kSoon = 20;  // seconds, on a machine that is busy with other tests

TEST(Faults, AHealthyJobEndsWithZero) {
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

TEST(Faults, AbortEndsTheJobWithItsCode) {
  const Outcome outcome = run_on_3_ranks("abort");
  EXPECT_EQ(outcome.exit_code, 2) << outcome.output;
  EXPECT_LT(outcome.seconds, kSoon);
}

TEST(Faults, AnExceptionOnOneRankEndsTheJob) {
  const Outcome outcome = run_on_3_ranks("throw");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_LT(outcome.seconds, kSoon);
}

TEST(Faults, AHangIsNamedAndEndsTheJob) {
  const Outcome outcome = run_on_3_ranks("hang");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_LT(outcome.seconds, kSoon);
  EXPECT_NE(outcome.output.find("in all_reduce for dense gradients, 16 bytes, call 2 (step 17)"), std::string::npos)
      << outcome.output;
  EXPECT_NE(outcome.output.find("rank 1 is not there: it left barrier"), std::string::npos) << outcome.output;
}

TEST(Faults, CountsThatDisagreeEndTheJob) {
  const Outcome outcome = run_on_3_ranks("counts");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_LT(outcome.seconds, kSoon);
}

}  // namespace
}  // namespace pkmesh
