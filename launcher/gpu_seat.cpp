// SPDX-License-Identifier: Apache-2.0
#include "launcher/gpu_seat.h"

#include <algorithm>

#include "launcher/options.h"

namespace pkmesh {

GpuSeat seat_of(int rank, const Hosts& hosts, const std::vector<std::vector<GpuIdentity>>& seen) {
  const auto here = [&](size_t other) { return hosts.of_rank[other] == hosts.of_rank[static_cast<size_t>(rank)]; };
  const auto index_of = [&](size_t one) {  // of a rank that sees some
    int64_t before = 0;
    for (size_t other = 0; other < one; ++other) before += here(other) && seen[other] == seen[one] ? 1 : 0;
    return static_cast<size_t>(before) % seen[one].size();
  };
  const auto me = static_cast<size_t>(rank);
  if (seen[me].empty()) return {};
  GpuSeat seat{static_cast<int>(seen[me].size()), static_cast<int>(index_of(me)), 0, 0};
  const GpuIdentity& mine = seen[me][index_of(me)];
  for (size_t other = 0; other < seen.size(); ++other) {
    if (!here(other) || seen[other].empty() || seen[other][index_of(other)] != mine) continue;
    seat.before += other < me ? 1 : 0;
    ++seat.ranks;
  }
  return seat;
}

GpuSeat find_gpu_seat(const config::Config& config, Communicator& world) {
  std::vector<GpuIdentity> mine;
  const int gpus = planned_device(config) == DeviceKind::kCuda ? device_count(DeviceKind::kCuda) : 0;
  for (int index = 0; index < gpus; ++index) mine.push_back(identity({DeviceKind::kCuda, index}));
  const auto ranks = static_cast<size_t>(world.size());
  const std::vector<int64_t> count = {gpus};
  std::vector<int64_t> counts(ranks);
  world.all_gather(count, std::span(counts), Purpose::kControl);
  const auto most = static_cast<size_t>(*std::ranges::max_element(counts));
  mine.resize(most);
  std::vector<GpuIdentity> all(ranks * most);
  world.all_gather<GpuIdentity>(mine, std::span(all), Purpose::kControl);
  std::vector<std::vector<GpuIdentity>> seen(ranks);
  for (size_t rank = 0; rank < ranks; ++rank) {
    const GpuIdentity* const first = all.data() + rank * most;
    seen[rank].assign(first, first + counts[rank]);
  }
  return seat_of(world.rank(), world.hosts(), seen);
}

}  // namespace pkmesh
