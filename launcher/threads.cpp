// SPDX-License-Identifier: Apache-2.0
#include "launcher/threads.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <string_view>

#include "runtime/check.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

// "PID: the plan's text", in a program that was started by its plan: in the same process, so nobody else says it.
constexpr const char* kSettled = "PKMESH_THREADS";

std::string settled_text(const std::string& plan) {
  return fmt::format("{}: {}", ::getpid(), plan);
}

std::optional<int> number_in(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return {};
  const int number = std::atoi(text);
  return number >= 1 || std::string_view(text).starts_with('0') ? std::optional<int>(number) : std::nullopt;
}

// The first of the launchers' variables that is set.
int first_of(std::initializer_list<const char*> names, int otherwise) {
  for (const char* name : names)
    if (const auto number = number_in(name)) return *number;
  return otherwise;
}

// This rank's entry of "2(x3),1": tasks of the job step's nodes.
std::optional<int> slurm_tasks() {
  const char* tasks = std::getenv("SLURM_STEP_TASKS_PER_NODE");
  return tasks == nullptr ? std::nullopt : tasks_of_node(tasks, number_in("SLURM_NODEID").value_or(0));
}

std::vector<int> cpus_of(const cpu_set_t& set) {
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus;
}

std::vector<int> affinity() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? cpus_of(set) : std::vector<int>{0};
}

bool bind(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  return sched_setaffinity(0, sizeof(set), &set) == 0;
}

// All CPUs that the system would grant: what is left of "all" after its own limits (cpuset).
std::vector<int> granted(const std::vector<int>& bound) {
  std::vector<int> all(CPU_SETSIZE);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) all[static_cast<size_t>(cpu)] = cpu;
  if (!bind(all)) return bound;
  std::vector<int> cpus = affinity();
  bind(bound);
  return cpus;
}

// The first of the hardware threads of a core; a second one shares the units that compute.
bool leads_its_core(int cpu) {
  std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
  int first = cpu;
  return !(file >> first) || first == cpu;
}

const char* asked_threads() {
  const char* const asked = std::getenv("OMP_NUM_THREADS");
  return asked == nullptr || *asked == '\0' ? nullptr : asked;
}

Cores look_around() {
  Cores cores;
  cores.bound = affinity();
  if (const char* const asked = asked_threads()) cores.threads = openmp_threads(asked);
  cores.waits = std::getenv("OMP_WAIT_POLICY") != nullptr;
  // Open MPI binds each rank to one core unless told otherwise, and tells its ranks what it was told.
  const auto told = [](const char* name) { return std::getenv(name) != nullptr; };
  cores.may_bind = told("OMPI_COMM_WORLD_LOCAL_RANK") && !told("OMPI_MCA_hwloc_base_binding_policy") &&
                   !told("OMPI_MCA_rmaps_base_mapping_policy") && !told("PRTE_MCA_hwloc_default_binding_policy");
  const std::vector<int> all = granted(cores.bound);
  const bool shared = cores.may_bind || cores.bound == all;
  if (shared) {
    cores.rank = first_of({"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"}, 0);
    cores.ranks = first_of({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"}, slurm_tasks().value_or(1));
  }
  cores.available = shared ? all : cores.bound;
  std::erase_if(cores.available, [](int cpu) { return !leads_its_core(cpu); });
  if (cores.available.empty()) cores.available = cores.bound;
  return cores;
}

}  // namespace

std::optional<int> tasks_of_node(std::string_view list, int node) {
  while (!list.empty()) {
    const std::string_view entry = list.substr(0, list.find(','));
    list.remove_prefix(std::min(list.size(), entry.size() + 1));
    int tasks = 0;
    int nodes = 1;
    const char* const end = entry.data() + entry.size();
    const auto read = std::from_chars(entry.data(), end, tasks);
    if (read.ec != std::errc() || tasks < 1) return std::nullopt;
    if (const std::string_view times(read.ptr, end); times.starts_with("(x"))
      std::from_chars(times.data() + 2, end, nodes);
    if (node < nodes) return tasks;
    node -= nodes;
  }
  return std::nullopt;
}

std::optional<int> openmp_threads(std::string_view list) {
  if (list.ends_with(',')) return std::nullopt;
  int first = 0;
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view entry = list.substr(0, comma);
    list.remove_prefix(std::min(list.size(), comma + 1));
    while (entry.starts_with(' ')) entry.remove_prefix(1);
    while (entry.ends_with(' ')) entry.remove_suffix(1);
    int number = 0;
    const auto [end, error] = std::from_chars(entry.data(), entry.data() + entry.size(), number);
    if (error != std::errc() || end != entry.data() + entry.size() || number < 1) return std::nullopt;
    if (first == 0) first = number;
  }
  return first > 0 ? std::optional(first) : std::nullopt;
}

void check_threads() {
  const char* const asked = asked_threads();
  if (asked != nullptr && !openmp_threads(asked))
    user_error("OMP_NUM_THREADS={}: is no number of threads; set it to 1 or more, or a list of such (4,2)", asked);
}

ThreadPlan plan_threads(const Cores& cores) {
  ThreadPlan plan;
  const auto available = static_cast<int>(cores.available.size());
  plan.threads = cores.threads.value_or(std::max(1, available / cores.ranks));
  const bool fits = plan.threads * cores.ranks <= available;
  if (cores.may_bind && fits) {
    const auto first = cores.available.begin() + static_cast<std::ptrdiff_t>(cores.rank) * plan.threads;
    std::vector<int> own(first, first + plan.threads);
    if (own != cores.bound) plan.cores = std::move(own);
  }
  plan.passive = !fits && plan.threads > 1 && !cores.waits;
  plan.text = fmt::format("{} per rank ({}), {} for {}{}", counted(plan.threads, "thread"),
                          cores.threads ? "OMP_NUM_THREADS" : "chosen", counted(available, "core"),
                          counted(cores.ranks, "rank"),
                          plan.passive ? "; more threads than cores, so they sleep while they wait" : "");
  return plan;
}

std::string settle_threads(char** argv) {
  if (const char* text = std::getenv(kSettled)) {
    const std::string settled = text;
    ::unsetenv(kSettled);  // programs that this one starts decide for themselves
    if (const std::string mine = settled_text(""); settled.starts_with(mine)) return settled.substr(mine.size());
  }
  const Cores cores = look_around();
  if (asked_threads() != nullptr && !cores.threads) return {};  // check_threads() refuses it, on all ranks together
  const ThreadPlan plan = plan_threads(cores);
  const bool as_is = plan.cores.empty() && !plan.passive &&
                     (cores.threads.has_value() || plan.threads == static_cast<int>(cores.bound.size()));
  if (as_is) return plan.text;
  if (!plan.cores.empty()) bind(plan.cores);
  if (plan.passive) ::setenv("OMP_WAIT_POLICY", "passive", 1);
  ::setenv("OMP_NUM_THREADS", std::to_string(plan.threads).c_str(), 1);
  ::setenv(kSettled, settled_text(plan.text).c_str(), 1);
  ::execv("/proc/self/exe", argv);
  return plan.text;  // it could not be started anew: it runs as it is
}

}  // namespace pkmesh
