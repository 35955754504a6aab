// SPDX-License-Identifier: Apache-2.0
#include "launcher/options.h"

#include <fmt/format.h>

#include <cstdlib>

#include "io/batches.h"
#include "layers/attention.h"
#include "layers/memory/select.h"
#include "runtime/check.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

MemorySite memory_site(const config::Memory& memory, const config::Model& model) {
  MemorySite site;
  site.layer = memory.layers(0);
  site.after = memory.placement() == config::Memory::AFTER;

  MemoryShape& shape = site.shape;
  shape.width = model.width();
  shape.heads = memory.heads();
  shape.neighbours = memory.neighbours();
  shape.sub_keys = memory.sub_keys();
  shape.key_width = memory.key_width();
  switch (memory.query_norm()) {
    case config::Memory::BATCH_NORM:
      shape.query_norm = QueryNorm::kBatchNorm;
      break;
    case config::Memory::LAYER_NORM:
      shape.query_norm = QueryNorm::kLayerNorm;
      break;
    case config::Memory::NONE:
      shape.query_norm = QueryNorm::kNone;
      break;
  }
  shape.output = memory.output() == config::Memory::SWILU ? MemoryOutput::kSwilu : MemoryOutput::kPlain;

  shape.exchange.pooled = memory.exchange() == config::Memory::POOLED;
  shape.exchange.bf16 = memory.exchange_type() == config::Memory::BF16;

  TableShape& table = site.table;
  table.name = memory.table();
  table.slots = int64_t{memory.sub_keys()} * memory.sub_keys();
  table.width = memory.value_width();
  switch (memory.row_type()) {
    case config::FP32:
      table.type = RowType::kFloat;
      break;
    case config::BF16:
      table.type = RowType::kBf16;
      break;
    case config::FP16:
      table.type = RowType::kFp16;
      break;
  }
  switch (memory.row_placement()) {
    case config::Memory::BLOCK:
      table.placement = PlacementKind::kBlock;
      break;
    case config::Memory::CYCLIC:
      table.placement = PlacementKind::kCyclic;
      break;
    case config::Memory::HASH:
      table.placement = PlacementKind::kHash;
      break;
  }
  return site;
}

template <class Message>  // config::Optimizer or config::Values
ScheduleOptions schedule(const Message& message, int64_t total_steps) {
  ScheduleOptions options;
  switch (message.schedule()) {
    case config::INVERSE_SQRT:
      options.kind = ScheduleKind::kInverseSqrt;
      break;
    case config::COSINE:
      options.kind = ScheduleKind::kCosine;
      break;
    case config::CONSTANT:
      options.kind = ScheduleKind::kConstant;
      break;
  }
  options.peak = message.learning_rate();
  options.warmup_init = message.warmup_init();
  options.warmup_steps = message.warmup_steps();
  options.min = message.min_learning_rate();
  options.total_steps = total_steps;
  return options;
}

}  // namespace

TransformerShape model_shape(const config::Config& config, int64_t vocabulary) {
  const config::Model& model = config.model();
  TransformerShape shape;
  shape.vocabulary = vocabulary;
  shape.context = model.context();
  shape.layers = model.layers();
  shape.embedding_norm = model.embedding_norm();
  shape.block.width = model.width();
  shape.block.heads = model.heads();
  shape.block.ffn_width = model.ffn_width();
  shape.block.pre_norm = model.norm() == config::Model::PRE_LN;
  shape.block.dropout = static_cast<float>(model.dropout());
  shape.block.attention_dropout = static_cast<float>(model.attention_dropout());
  for (const auto& memory : model.memory()) shape.memories.push_back(memory_site(memory, model));
  return shape;
}

AdamOptions dense_options(const config::Config& config) {
  const config::Optimizer& optimizer = config.optimizer();
  return {optimizer.beta1(), optimizer.beta2(), optimizer.epsilon(), optimizer.weight_decay()};
}

RowAdamOptions row_options(const config::Config& config) {
  const config::Values& values = config.values();
  RowAdamOptions options;
  options.update = values.algorithm() == config::Values::DENSE_ADAM ? RowAdamOptions::Update::kDense
                                                                    : RowAdamOptions::Update::kSparse;
  options.correction = values.bias_correction() == config::Values::ROW_COUNTER
                           ? RowAdamOptions::Correction::kRowCounter
                           : RowAdamOptions::Correction::kGlobalStep;
  options.second_moment = values.second_moment() == config::Values::ROW_WISE ? RowAdamOptions::SecondMoment::kRowWise
                                                                             : RowAdamOptions::SecondMoment::kFull;
  options.bf16_moments = values.moment_type() == config::BF16;
  options.beta1 = values.beta1();
  options.beta2 = values.beta2();
  options.eps = values.epsilon();
  return options;
}

ScheduleOptions dense_schedule(const config::Config& config) {
  return schedule(config.optimizer(), config.train().steps());
}

ScheduleOptions values_schedule(const config::Config& config) {
  return schedule(config.values(), config.train().steps());
}

Math math_of(const config::Config& config) {
  switch (config.train().precision()) {
    case config::Train::FP32:
      return Math::kFp32;
    case config::Train::BF16:
      return Math::kBf16;
    case config::Train::FP16:
      return Math::kFp16;
  }
  PKM_CHECK(false, "no precision {}", static_cast<int>(config.train().precision()));
}

DeviceLink device_link(const config::Config& config) {
  switch (config.train().communication()) {
    case config::NCCL:
      return DeviceLink::kNccl;
    case config::HOST_STAGED:
      return DeviceLink::kHostStaged;
    default:
      return DeviceLink::kAuto;
  }
}

DeviceKind planned_device(const config::Config& config) {
  const bool cpu = config.train().device() == config::Train::CPU ||
                   (config.train().device() == config::Train::AUTO && device_count(DeviceKind::kCuda) == 0);
  return cpu ? DeviceKind::kCpu : DeviceKind::kCuda;
}

namespace {

// What kernels hold in a block's shared memory or in registers.
void check_gpu_limits(const config::Config& config) {
  const config::Model& model = config.model();
  const auto check = [](const std::string& what, int value, int64_t most, const char* remedy) {
    if (value > most)
      user_error("{} is {}; a CUDA device takes {} at most: {}, or set train.device to CPU", what, value, most, remedy);
  };
  check("model.context", model.context(), kMostGpuContext, "lower it");
  check("model.width / model.heads", model.width() / model.heads(), kMostGpuHeadWidth, "set more heads");
  for (int i = 0; i < model.memory_size(); ++i) {
    const config::Memory& memory = model.memory(i);
    const std::string key = fmt::format("model.memory.{}", i);
    check(key + ".neighbours", memory.neighbours(), kMostGpuNeighbours, "lower it");
    check(key + ".value_width", memory.value_width() == 0 ? model.width() : memory.value_width(), kMostGpuRowWidth,
          "lower it");
  }
}

}  // namespace

Device choose_device(const config::Config& config, const Communicator& world, const GpuSeat& seat, bool trains) {
  resolve(device_link(config));  // an error if it is not there, whatever computes
  if (planned_device(config) == DeviceKind::kCpu) {
    if (config.train().precision() == config::Train::FP16)
      user_error("train.precision: the CPU has no products of FP16; set it to BF16 or FP32");
    return {};
  }
  if (!compiled_with(DeviceKind::kCuda))
    user_error("train.device: this program was built without CUDA; set it to CPU, or build the cuda preset");
  if (seat.gpus == 0) user_error("train.device: this machine has no CUDA devices; set it to CPU or AUTO");
  check_gpu_limits(config);
  if (trains && world.hosts().count() > 1 && gradient_wire(config) == Wire::kBf16 &&
      resolve(device_link(config)) == DeviceLink::kNccl)
    user_error(
        "train.exchange_type: NCCL sums dense gradients in FP32; set it to that, or train.communication to "
        "HOST_STAGED");
  // NCCL refuses two ranks on one GPU, unless NCCL_HOSTID makes it take them for ranks of two hosts.
  const bool may_share = resolve(device_link(config)) == DeviceLink::kHostStaged
                             ? config.train().communication() == config::HOST_STAGED
                             : std::getenv("NCCL_HOSTID") != nullptr;
  if (seat.before > 0 && !may_share)
    user_error(
        "train.device: rank {} on {} sees {}, which lower ranks have already; start fewer ranks per host, show each a "
        "GPU of its own, let them share GPUs (train.communication=HOST_STAGED), or set it to CPU",
        world.rank(), world.hosts().name_of(world.rank()), counted(seat.gpus, "GPU"));
  const Device device = {DeviceKind::kCuda, seat.index};
  if (config.train().precision() == config::Train::BF16 && !has_bf16(device))
    user_error("train.precision: {} has no BF16, which GPUs from Ampere on have; set it to FP16", to_string(device));
  check_attention_fits(device, config.model().width() / config.model().heads(), trains);
  return device;
}

int64_t bucket_bytes(const config::Config& config) {
  double mib = config.train().bucket_mib();
  // On CPUs the sums of a bucket begin and end in pieces anyway: the sooner it leaves, the more hides.
  if (mib == 0) mib = planned_device(config) == DeviceKind::kCpu ? 2 : 16;
  return static_cast<int64_t>(mib * (1 << 20));
}

Wire gradient_wire(const config::Config& config) {
  return config.train().exchange_type() == config::Memory::BF16 ? Wire::kBf16 : Wire::kExact;
}

bool input_rows_apart(const config::Config& config, int64_t vocabulary, int64_t ranks) {
  const BatchShape batch = {config.train().batch(), config.train().accumulate(), 0, ranks};
  return batch.accumulate == 1 && 2 * batch.largest_share() * config.model().context() <= vocabulary;
}

std::string device_choice(const config::Config& config, Device device) {
  if (device.kind == DeviceKind::kCpu) return "the CPU";
  return fmt::format("GPUs over {}", to_string(resolve(device_link(config))));
}

}  // namespace pkmesh
