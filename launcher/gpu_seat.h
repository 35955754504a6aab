// SPDX-License-Identifier: Apache-2.0
// Which GPU is whose. Ranks of a host may all see its GPUs, or each its own (srun --gpus-per-task, CUDA_VISIBLE_DEVICES
// of each rank), and each counts those that it sees from 0. So they tell each other which ones these are.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "io/config.pb.h"
#include "runtime/device.h"

namespace pkmesh {

struct GpuSeat {
  int gpus = 0;       // that this rank sees; 0 if it computes on the CPU
  int index = 0;      // of its own among them
  int before = 0;     // lower ranks that have the same one
  int64_t ranks = 1;  // that have it, this one among them
};

// Ranks of a host that see the same GPUs take them in turn. `seen`: by each rank, in its order.
GpuSeat seat_of(int rank, const Hosts& hosts, const std::vector<std::vector<GpuIdentity>>& seen);

// This rank's. Collective; what is wrong with it, choose_device() says.
GpuSeat find_gpu_seat(const config::Config& config, Communicator& world);

}  // namespace pkmesh
