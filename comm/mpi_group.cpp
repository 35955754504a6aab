// SPDX-License-Identifier: Apache-2.0
#include "comm/mpi_group.h"

#include <algorithm>
#include <array>
#include <exception>
#include <new>
#include <thread>

#include "comm/mpi_sums.h"
#include "runtime/check.h"

namespace pkmesh {

void check_mpi(int status, const char* call, const char* file, int line) {
  if (status == MPI_SUCCESS) [[likely]]
    return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(status, text.data(), &length);
  int rank = -1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  detail::fail_check(call, file, line, fmt::format("MPI on rank {} ({}): {}", rank, this_host(), text.data()));
}

MpiGroup::MpiGroup() {
  PKM_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &world));
  PKM_MPI(MPI_Comm_set_errhandler(world, MPI_ERRORS_RETURN));
  PKM_MPI(MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host));
  PKM_MPI(MPI_Comm_rank(world, &rank));
  PKM_MPI(MPI_Comm_size(world, &size));
}

MpiGroup::~MpiGroup() {
  if (std::uncaught_exceptions() > 0) return;
  for (MPI_Win& window : windows_) MPI_Win_free(&window);
  MPI_Comm_free(&host);
  MPI_Comm_free(&world);
}

Hosts MpiGroup::find_hosts() const {
  constexpr int kNameLength = 256;
  struct Entry {
    int leader;  // lowest rank of the host
    std::array<char, kNameLength> name;
  };
  Entry mine{rank, {}};
  PKM_MPI(MPI_Allreduce(&rank, &mine.leader, 1, MPI_INT, MPI_MIN, host));
  const std::string name = this_host();
  std::copy_n(name.begin(), std::min<size_t>(name.size(), kNameLength - 1), mine.name.begin());
  std::vector<Entry> entries(static_cast<size_t>(size));
  PKM_MPI(MPI_Allgather(&mine, sizeof(Entry), MPI_BYTE, entries.data(), sizeof(Entry), MPI_BYTE, world));
  Hosts hosts;
  std::vector<int> leaders;
  for (const Entry& entry : entries) {
    const auto known = std::find(leaders.begin(), leaders.end(), entry.leader);
    hosts.of_rank.push_back(static_cast<int>(known - leaders.begin()));
    if (known != leaders.end()) continue;
    leaders.push_back(entry.leader);
    hosts.names.emplace_back(entry.name.data());
  }
  return hosts;
}

// What each of this host's ranks shows to the others, in the order of `host`: one T each, in memory that they share,
// on pages of its own. Empty on all if one cannot have it.
template <class T>
std::vector<T*> MpiGroup::show_to_host() {
  MPI_Info apart = MPI_INFO_NULL;
  PKM_MPI(MPI_Info_create(&apart));
  PKM_MPI(MPI_Info_set(apart, "alloc_shared_noncontig", "true"));
  // MPI gives it no particular alignment, but all ranks see it at the same place of a page.
  constexpr size_t kBytes = sizeof(T) + alignof(T);
  const auto aligned = [](void* memory) {
    size_t space = kBytes;
    return static_cast<T*>(std::align(alignof(T), sizeof(T), memory, space));
  };
  MPI_Win window = MPI_WIN_NULL;
  void* mine = nullptr;
  int made = MPI_Win_allocate_shared(kBytes, 1, apart, host, static_cast<void*>(&mine), &window) == MPI_SUCCESS;
  PKM_MPI(MPI_Info_free(&apart));
  if (made == 1) new (aligned(mine)) T{};
  PKM_MPI(MPI_Allreduce(MPI_IN_PLACE, &made, 1, MPI_INT, MPI_MIN, host));  // and all are made before any is used
  if (made == 0) return {};  // freeing is collective: a window that some did not get is left to the system
  windows_.push_back(window);
  int count = 0;
  PKM_MPI(MPI_Comm_size(host, &count));
  std::vector<T*> shown;
  for (int r = 0; r < count; ++r) {
    MPI_Aint bytes = 0;
    int unit = 0;
    void* memory = nullptr;
    PKM_MPI(MPI_Win_shared_query(window, r, &bytes, &unit, static_cast<void*>(&memory)));
    shown.push_back(aligned(memory));
  }
  return shown;
}

StatusBoard MpiGroup::make_board() {
  StatusBoard board{rank, {}, show_to_host<RankStatus>(), nullptr};
  if (board.statuses.empty()) return StatusBoard::alone(rank);  // the watchdog then knows of this rank alone
  board.ranks.resize(board.statuses.size());
  PKM_MPI(MPI_Allgather(&rank, 1, MPI_INT, board.ranks.data(), 1, MPI_INT, host));
  return board;
}

std::unique_ptr<SharedSums> MpiGroup::make_sums() {
  if (size < 2 || size > SharedSums::kMostRanks) return nullptr;
  std::vector<SharedSums::Window*> shown = show_to_host<SharedSums::Window>();
  if (shown.empty()) return nullptr;
  // MPI's own transfers go on only inside its calls, and a rank that is waited for may itself wait for one.
  constexpr int kUnusedTag = 2;
  return std::make_unique<SharedSums>(rank, std::move(shown), [this] {
    MpiSums::progress_all();
    int found = 0;
    PKM_MPI(MPI_Iprobe(MPI_ANY_SOURCE, kUnusedTag, world, &found, MPI_STATUS_IGNORE));
    std::this_thread::yield();
  });
}

}  // namespace pkmesh
