// SPDX-License-Identifier: Apache-2.0
// From a configuration to what the lower folders take: shapes of the model, options of the optimisers. Below the
// launcher nothing reads the configuration.
#pragma once

#include <cstdint>
#include <string>

#include "comm/device_communicator.h"
#include "io/config.pb.h"
#include "launcher/gpu_seat.h"
#include "layers/transformer.h"
#include "optim/adam.h"
#include "optim/schedule.h"
#include "optim/sparse_adam.h"

namespace pkmesh {

// All of these need a resolved configuration.
TransformerShape model_shape(const config::Config& config, int64_t vocabulary);
AdamOptions dense_options(const config::Config& config);
RowAdamOptions row_options(const config::Config& config);
ScheduleOptions dense_schedule(const config::Config& config);
ScheduleOptions values_schedule(const config::Config& config);
// What ranks compute on: what the configuration says, which may not be here, or with AUTO what this machine has.
DeviceKind planned_device(const config::Config& config);
// The device of this rank. UserError if CUDA or NCCL was asked for and is not to be had, if GPUs are too few, or if the
// device has not the precision or cannot hold the sizes. Who only reads a checkpoint needs less than who trains.
Device choose_device(const config::Config& config, const Communicator& world, const GpuSeat& seat, bool trains = true);
DeviceLink device_link(const config::Config& config);
// What of the choice must be the same on all ranks, for they do together what follows from it.
std::string device_choice(const config::Config& config, Device device);
Math math_of(const config::Config& config);
// Of dense gradients: on planned_device(), and across hosts.
int64_t bucket_bytes(const config::Config& config);
Wire gradient_wire(const config::Config& config);
// Whether ranks that share the dense update over messages exchange the rows of the token embeddings that their inputs
// read apart from the table: a rank's are few.
bool input_rows_apart(const config::Config& config, int64_t vocabulary, int64_t ranks);

}  // namespace pkmesh
