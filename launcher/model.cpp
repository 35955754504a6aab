// SPDX-License-Identifier: Apache-2.0
#include "launcher/model.h"

#include <fmt/format.h>

#include <filesystem>

#include "comm/agree.h"
#include "io/config.h"
#include "io/file.h"
#include "launcher/memory_plan.h"
#include "runtime/log.h"
#include "runtime/readback.h"

namespace pkmesh {
namespace {

std::unique_ptr<Communicator> connect(Communicator& world, Device device, DeviceLink link) {
  if (device.kind == DeviceKind::kCpu) return nullptr;
  // Of one rank nothing travels, but MPI, where mpirun started it, would still refuse the device's memory.
  return make_device_communicator(world, device, world.size() == 1 ? DeviceLink::kHostStaged : link);
}

// A checkpoint is read on other machines than it was written on: a device, link or precision of its run that is not
// here is left out, and said.
void suit_this_machine(config::Config& config) {
  config::Train& train = *config.mutable_train();
  if (train.communication() == config::NCCL) train.set_communication(config::AUTO);  // takes NCCL if it is there
  if (train.device() == config::Train::CUDA && device_count(DeviceKind::kCuda) == 0) {
    train.set_device(config::Train::CPU);
    log_info("computes on the CPU: there is no CUDA device here, which the model was trained on");
  }
  const bool cpu = planned_device(config) == DeviceKind::kCpu;
  if ((cpu && train.precision() == config::Train::FP16) ||
      (!cpu && train.precision() == config::Train::BF16 && !has_bf16({DeviceKind::kCuda, 0}))) {
    const auto former = train.precision();
    train.set_precision(config::Train::FP32);
    log_info("computes in FP32: what computes here has no products of {}, which the model was trained with",
             config::Train::Precision_Name(former));
  }
}

}  // namespace

Model::Model(const config::Config& config, Communicator& world, Device device, int64_t vocabulary)
    : device_world_(connect(world, device, device_link(config))),
      world_(device_world_ == nullptr ? world : *device_world_),
      seed_(config.train().seed()),
      stream_(device),
      arena_(device),
      transformer_(model_shape(config, vocabulary), parameters_, world_, device, seed_) {
  stream_.set_math(math_of(config));
  parameters_.allocate(device, seed_);
  world_.use(stream_);
}

StepContext Model::begin(bool training) {
  arena_.reset();
  StepContext context{stream_, arena_, world_};
  context.seed = seed_;
  context.training = training;
  return context;
}

CheckpointContents Model::contents() {
  CheckpointContents contents;
  contents.stream = &stream_;
  add_dense(contents, "", parameters_.entries(), parameters_.values());
  add_dense(contents, "", parameters_.state_entries(), parameters_.states());
  for (const auto& table : transformer_.tables()) {
    ShardedTable sharded;
    sharded.name = table->shape().name;
    sharded.rows = table->shape().slots;
    sharded.local_rows = table->local_rows();
    sharded.global_row = [table = table.get()](int64_t local) { return table->global_row(local); };
    std::visit([&](const auto& rows) { sharded.tensors.push_back(row_tensor("values", rows)); }, table->rows());
    contents.tables.push_back(std::move(sharded));
  }
  return contents;
}

std::vector<MemoryHealth> Model::memory_health() {
  std::vector<MemoryHealth> health;
  for (const auto& table : transformer_.tables()) {
    const OnHost counts(stream_, table->usage_counts());
    const OnHost weights(stream_, table->usage_weights());
    health.push_back(pkmesh::memory_health(world_, counts.span(), weights.span(), table->best_rows(stream_, world_),
                                           table->shape().slots));
  }
  return health;
}

void Model::reset_usage() {
  for (const auto& table : transformer_.tables()) table->reset_usage(stream_);
}

void add_dense(CheckpointContents& contents, const std::string& prefix, const std::vector<Parameters::Entry>& entries,
               std::span<float> all) {
  for (const auto& entry : entries) {
    DenseTensor tensor = {{prefix + entry.name, DType::kF32, entry.shape}, {}};
    tensor.parts = {{0, std::as_writable_bytes(Share{entry.offset, entry.offset + entry.count}.of(all))}};
    contents.dense.push_back(std::move(tensor));
  }
}

void add_dense_shares(CheckpointContents& contents, const std::string& prefix,
                      const std::vector<Parameters::Entry>& entries, std::span<float> here,
                      const std::vector<Share>& shares) {
  for (const auto& entry : entries) {
    DenseTensor tensor = {{prefix + entry.name, DType::kF32, entry.shape}, {}, /*cut=*/true};
    int64_t before = 0;  // elements of former shares
    for (const Share& share : shares) {
      const Share part = share.part_of({entry.offset, entry.offset + entry.count});
      const int64_t begin = before + part.begin - share.begin;
      if (part.count() > 0)
        tensor.parts.push_back({(part.begin - entry.offset) * int64_t{sizeof(float)},
                                std::as_writable_bytes(Share{begin, begin + part.count()}.of(here))});
      before += share.count();
    }
    contents.dense.push_back(std::move(tensor));
  }
}

LoadedModel load_model(Communicator& world, const std::string& path, Reading reading) {
  LoadedModel loaded;
  Device device;
  agree(world, [&] {
    loaded.path = find_checkpoint(path);
    loaded.facts = read_checkpoint_facts(loaded.path);
    loaded.config = resolve(parse_config(loaded.facts.config_text, loaded.path + "/config.textproto"));
    loaded.tokenizer = load_tokenizer(loaded.path);
    suit_this_machine(loaded.config);
  });
  const GpuSeat seat = find_gpu_seat(loaded.config, world);
  agree(world, [&] {
    device = choose_device(loaded.config, world, seat, /*trains=*/false);
    const int64_t vocabulary = loaded.tokenizer->vocabulary_size();
    check_fits(plan_reading(loaded.config, vocabulary, world.hosts(), device.kind, reading), world, device, seat);
  });
  agree_on(world, "device", device_choice(loaded.config, device));
  agree_on(world, "configuration", to_text(loaded.config));
  loaded.model = std::make_unique<Model>(loaded.config, world, device, loaded.tokenizer->vocabulary_size());
  load_checkpoint(world, loaded.path, loaded.model->contents(), {.exact = false});
  return loaded;
}

}  // namespace pkmesh
