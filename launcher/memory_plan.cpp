// SPDX-License-Identifier: Apache-2.0
#include "launcher/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "comm/host_staged.h"
#include "comm/mpi.h"
#include "comm/shared_sums.h"
#include "io/batches.h"
#include "io/tokenizer.h"
#include "launcher/evaluator.h"
#include "layers/cross_entropy.h"
#include "layers/memory/row_gradients.h"
#include "layers/memory/select.h"
#include "layers/memory/sum_by_row.h"
#include "runtime/parallel.h"
#include "runtime/process_memory.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

constexpr int64_t kFloat = 4;
// The most that a plan says. No machine has it, and sums over the ranks of a host stay within 64 bits. What grows with
// the batch is computed in doubles, for options may ask for more than 64 bits count.
constexpr int64_t kMost = int64_t{1} << 50;
constexpr const char* kOverTheMost = "over 1 PiB";

int64_t capped(double count) {
  return count < static_cast<double>(kMost) ? static_cast<int64_t>(count) : kMost;
}

// The plan's columns: finer than count_text() and bytes_text(), for its lines are added up.
std::string planned_count(int64_t count) {
  if (count >= 10'000'000'000'000) return fmt::format("{:.1f}T", static_cast<double>(count) / 1e12);
  if (count >= 10'000'000'000) return fmt::format("{:.1f}G", static_cast<double>(count) / 1e9);
  if (count >= 10'000'000) return fmt::format("{:.1f}M", static_cast<double>(count) / 1e6);
  if (count >= 10'000) return fmt::format("{:.1f}k", static_cast<double>(count) / 1e3);
  return std::to_string(count);
}

std::string planned_bytes(int64_t bytes) {
  if (bytes >= kMost) return kOverTheMost;
  const double mib = static_cast<double>(bytes) / (1 << 20);
  if (mib >= 1 << 20) return fmt::format("{:.2f} TiB", mib / (1 << 20));
  return mib >= 1024 ? fmt::format("{:.2f} GiB", mib / 1024) : fmt::format("{:.1f} MiB", mib);
}

int64_t memory_parameters(const MemorySite& site) {
  const MemoryShape& memory = site.shape;
  const int64_t features = memory.heads * memory.key_width;
  int64_t count = (memory.width + 1) * features;                              // query
  if (memory.query_norm == QueryNorm::kBatchNorm) count += 2 * features;      // scale, shift
  if (memory.query_norm == QueryNorm::kLayerNorm) count += memory.key_width;  // of a half, which all have in common
  count += memory.heads * memory.sub_keys * memory.key_width;                 // keys: 2 halves of key_width / 2
  if (memory.output == MemoryOutput::kSwilu) count += 2 * memory.width * site.table.width;
  return count;
}

const MemorySite* site_of(const TransformerShape& shape, int64_t layer, bool after) {
  const auto found = std::ranges::find_if(
      shape.memories, [&](const MemorySite& site) { return site.layer == layer && site.after == after; });
  return found == shape.memories.end() ? nullptr : &*found;
}

// Floats that a memory layer keeps for its backward pass, for `tokens` tokens of this rank.
double memory_activations(const MemorySite& site, double tokens, const Hosts& hosts) {
  const MemoryShape& memory = site.shape;
  const int64_t features = memory.heads * memory.key_width;
  const int64_t reads = memory.heads * memory.neighbours;
  const auto ranks = std::ssize(hosts.of_rank);
  const bool two_legs = in_two_legs(memory.exchange, hosts);
  const int64_t owners = ranks == 1 ? 0 : std::min(reads, ranks);  // of the rows of a token
  double count = tokens * (2 * features + 4 * reads + 2 * memory.width + site.table.width);
  count +=
      tokens * (2 * owners * site.table.width);  // partial sums: of this rank's tokens, and of others' for its rows
  if (two_legs) count += tokens * (std::min(reads, hosts.count()) * site.table.width);
  if (!two_legs && memory.exchange.bf16 && hosts.count() > 1) count += tokens * (owners * site.table.width);
  // Of each selection, once (row, weight); for each leg its address, itself as it is sent and as it arrives, its
  // number, and what pairs need.
  if (ranks > 1) count += tokens * (reads * (two_legs ? 18 : 10));
  if (memory.output == MemoryOutput::kSwilu) count += tokens * (3 * site.table.width);
  return count;
}

// What `passes` backward passes leave until the update, on a rank with 1/R of the rows and of what is read, of `tokens`
// of its own and `all_tokens` of all ranks; and what it takes to gather in blocks and to sum by row, or to sort.
double pending_bytes(const MemorySite& site, double tokens, double all_tokens, int64_t passes, int ranks,
                     DeviceKind device) {
  const int64_t of_a_token = site.shape.heads * site.shape.neighbours;
  const double reads = tokens * of_a_token;
  const double pairs = ranks == 1 ? tokens : tokens * std::min(of_a_token, int64_t{ranks});
  if (device == DeviceKind::kCpu && read_often(capped(all_tokens * of_a_token), site.table.slots)) {
    const int64_t rows = (site.table.slots + ranks - 1) / ranks;
    // The first pass' sums stay, and later ones are added to them.
    const int64_t sums = std::min<int64_t>(passes, 2) * site.table.width * kFloat;
    return static_cast<double>(rows) * static_cast<double>(sums + 48 + passes * 16) + reads * 24 + pairs * 128;
  }
  // Selections 8, weight and source 8, row and offset 12, a record 16; on the CPU the order 4; on a GPU another record.
  return static_cast<double>(passes) *
         (pairs * (site.table.width * kFloat) + reads * (device == DeviceKind::kCpu ? 48 : 60));
}

// Floats of one block: what its forward pass leaves, and the most that lives only while the block runs backwards.
struct BlockFloats {
  double kept = 0;
  double passing = 0;
};
BlockFloats block_floats(const TransformerShape& shape, int64_t layer, double tokens, const Hosts& hosts) {
  const int64_t width = shape.block.width;
  double kept = tokens * (9 * width + shape.block.heads + 4);
  double widest = tokens * (4 * width);
  if (const MemorySite* site = site_of(shape, layer, /*after=*/false); site != nullptr) {
    const double memory = memory_activations(*site, tokens, hosts);
    kept += memory;
    widest = std::max(widest, memory);
  } else {
    kept += tokens * (2 * shape.block.ffn_width);
    widest = std::max(widest, tokens * shape.block.ffn_width);
  }
  if (const MemorySite* site = site_of(shape, layer, /*after=*/true); site != nullptr) {
    const double memory = memory_activations(*site, tokens, hosts);
    kept += memory + tokens * width;
    widest = std::max(widest, memory);
  }
  return {kept, widest + tokens * width};
}

double logits_floats(const TransformerShape& shape, double tokens, DeviceKind device) {
  return std::min(tokens, static_cast<double>(logits_chunk(device))) * shape.vocabulary;
}

double activation_bytes(const TransformerShape& shape, double tokens, const Hosts& hosts, DeviceKind device) {
  // Embeddings, and the gradient that runs back.
  double kept = tokens * (shape.block.width * (shape.embedding_norm ? 3 : 2));
  double passing = logits_floats(shape, tokens, device);
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    const BlockFloats block = block_floats(shape, layer, tokens, hosts);
    kept += block.kept;
    passing = std::max(passing, block.passing);
  }
  return (kept + passing) * kFloat;
}

// Of a forward pass that nothing follows: a block's memory is the next one's.
double reading_bytes(const TransformerShape& shape, double tokens, const Hosts& hosts, DeviceKind device) {
  double passing = logits_floats(shape, tokens, device);
  for (int64_t layer = 0; layer < shape.layers; ++layer)
    passing = std::max(passing, block_floats(shape, layer, tokens, hosts).kept);
  return (tokens * (shape.block.width * (shape.embedding_norm ? 3 : 2)) + passing) * kFloat;
}

// What an op rounds its operands to on a GPU, if it does: of the output layer embeddings, inputs and logits, of the
// widest other one weights, inputs and gradients.
double rounded_bytes(const TransformerShape& shape, double tokens) {
  const auto bytes = [](double rows, int64_t in, int64_t out) {
    return 2 * (rows * static_cast<double>(in + out) + static_cast<double>(in * out));
  };
  const int64_t width = shape.block.width;
  int64_t widest = std::max(3 * width, shape.block.ffn_width);
  for (const MemorySite& site : shape.memories) widest = std::max(widest, site.shape.heads * site.shape.key_width);
  const double chunk = std::min(tokens, static_cast<double>(logits_chunk(DeviceKind::kCuda)));
  return std::max(bytes(chunk, width, shape.vocabulary), bytes(tokens, width, widest));
}

// A GPU's ops share one piece of memory, as large as the greatest need; counted are those that may need most. `tokens`
// of each of `passes` passes.
double scratch_bytes(const TransformerShape& shape, double tokens, int64_t passes, Math math) {
  double most = math == Math::kFp32 ? 0 : rounded_bytes(shape, tokens);
  for (const MemorySite& site : shape.memories) {
    const MemoryShape& memory = site.shape;
    const auto chunks = [](double contributions, int64_t width) {
      return contributions / kGpuChunk * static_cast<double>(width * kFloat);
    };
    const double reads = tokens * static_cast<double>(memory.heads * memory.neighbours);
    const auto sub_keys = static_cast<double>(memory.heads * 2 * memory.sub_keys);
    const double scores = std::max(1.0, std::min(tokens, kGpuScoreBytes / (sub_keys * kFloat))) * sub_keys * kFloat;
    const double sub_key_gradients = 2 * reads * kGpuBytesPerGradient + chunks(2 * reads, memory.key_width / 2) +
                                     sub_keys * static_cast<double>(sizeof(int64_t));
    const double row_gradients = chunks(static_cast<double>(passes) * reads, site.table.width);
    most = std::max({most, scores, sub_key_gradients, row_gradients});
  }
  return most;
}

MemoryPlan::Line scratch_line(const TransformerShape& shape, int64_t tokens, int64_t passes, Math math) {
  return {"scratch of kernels", "what the greatest op needs, and cuBLAS's workspace",
          capped(scratch_bytes(shape, static_cast<double>(tokens), passes, math) +
                 static_cast<double>(kBlasWorkspaceBytes))};
}

// Of each slot of the whole table every rank has a bit, whether it was the best of a head.
int64_t table_bytes(int64_t rows, int64_t row_bytes, const TableShape& table) {
  return std::min(rows * row_bytes + (table.slots + 7) / 8, kMost);
}

// Values and gradients on every rank; moments, and rounded changes if they travel, on `sharing` ranks together.
MemoryPlan::Line dense_line(int64_t parameters, int sharing, bool rounds) {
  const std::string of = sharing == 1 ? "" : fmt::format(" of 1/{}", sharing);
  const int64_t each = 2 * kFloat + (rounds ? 2 : 0);
  return {"dense parameters",
          fmt::format("{} x (value, gradient, 2 moments{}{})", planned_count(parameters), of,
                      rounds ? ", the rounded change" + of : ""),
          parameters * 2 * kFloat + (parameters + sharing - 1) / sharing * each};
}

// Puts on the device what is planned so far, and what it takes for itself.
void place_on(DeviceKind device, MemoryPlan& plan) {
  if (device != DeviceKind::kCpu)
    plan.lines.push_back({"CUDA, NCCL", "about as much, for their own use", int64_t{1} << 30});
  for (MemoryPlan::Line& line : plan.lines) line.where = device;
}

// Whether what travels between GPUs passes through the hosts.
bool stages(const config::Config& config) {
  const DeviceLink link = device_link(config);
  return link == DeviceLink::kHostStaged || (link == DeviceLink::kAuto && resolve(link) == DeviceLink::kHostStaged);
}

}  // namespace

int64_t MemoryPlan::bytes_per_rank() const {
  int64_t total = 0;
  for (const Line& line : lines) total += line.bytes;
  return std::min(total, kMost);
}

int64_t MemoryPlan::bytes_per_rank(DeviceKind where) const {
  int64_t total = 0;
  for (const Line& line : lines) total += line.where == where ? line.bytes : 0;
  return std::min(total, kMost);
}

int64_t count_dense_parameters(const TransformerShape& shape) {
  const int64_t d = shape.block.width;
  const int64_t norm = 2 * d;
  int64_t count = (shape.vocabulary + shape.context) * d;
  if (shape.embedding_norm) count += norm;
  if (shape.block.pre_norm) count += norm;
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    count += 2 * norm + 4 * d * d + 4 * d;  // two norms, qkv, out
    const MemorySite* replace = site_of(shape, layer, /*after=*/false);
    const int64_t f = shape.block.ffn_width;
    count += replace != nullptr ? memory_parameters(*replace) : 2 * d * f + f + d;
    const MemorySite* after = site_of(shape, layer, /*after=*/true);
    if (after != nullptr) count += memory_parameters(*after) + (shape.block.pre_norm ? norm : 0);
  }
  return count;
}

MemoryPlan plan_memory(const config::Config& config, int64_t vocabulary, const Hosts& hosts, DeviceKind device) {
  const auto ranks = static_cast<int>(hosts.of_rank.size());
  const TransformerShape shape = model_shape(config, vocabulary);
  MemoryPlan plan;
  plan.ranks = ranks;
  plan.dense_parameters = count_dense_parameters(shape);
  // Ranks on CPUs share the dense update. On one host they need no messages for it.
  const int sharing = device == DeviceKind::kCpu ? ranks : 1;
  const bool sends = ranks > 1 && (hosts.count() > 1 || ranks > SharedSums::kMostRanks);
  const bool rounds = sharing > 1 && hosts.count() > 1 && gradient_wire(config) == Wire::kBf16;
  plan.lines.push_back(dense_line(plan.dense_parameters, sharing, rounds));

  const BatchShape batch = {config.train().batch(), config.train().accumulate(), 0, ranks};
  const int64_t tokens = batch.largest_share() * shape.context;
  const int64_t all_tokens = batch.sequences / batch.accumulate * shape.context;
  std::map<std::string, TableShape> tables;
  double pending = 0;
  for (const MemorySite& site : shape.memories) {
    tables.emplace(site.table.name, site.table);
    pending += pending_bytes(site, static_cast<double>(tokens), static_cast<double>(all_tokens), batch.accumulate,
                             ranks, device);
  }
  for (const auto& [name, table] : tables) {
    plan.value_parameters += table.slots * table.width;
    const int64_t rows = (table.slots + ranks - 1) / ranks;
    const int64_t row_bytes = table.width * bytes_of(table.type) +
                              RowOptimizer::bytes_per_row(row_options(config), table.width) + ValueTable::kUsageBytes;
    plan.lines.push_back({"table " + name,
                          fmt::format("{} of {} rows x {} bytes (value, moments, counters), and a bit per slot",
                                      planned_count(rows), planned_count(table.slots), row_bytes),
                          table_bytes(rows, row_bytes, table)});
  }
  plan.lines.push_back({"activations", fmt::format("{} tokens at a time", tokens),
                        capped(activation_bytes(shape, static_cast<double>(tokens), hosts, device))});
  if (device != DeviceKind::kCpu) plan.lines.push_back(scratch_line(shape, tokens, batch.accumulate, math_of(config)));
  if (pending > 0)
    plan.lines.push_back({"row gradients", "what backward passes leave until the update", capped(pending)});
  place_on(device, plan);
  if (device == DeviceKind::kCpu ? sends : ranks > 1 && stages(config))
    plan.lines.push_back({"reductions", "parts of the dense gradients, or of parameters, on their way",
                          MpiOptions{}.memory(ranks, std::min(bucket_bytes(config), plan.dense_parameters * kFloat))});
  if (device == DeviceKind::kCpu && sends && input_rows_apart(config, vocabulary, ranks))
    plan.lines.push_back({"input embeddings", "their rows and gradients, here and on their way",
                          tokens * shape.block.width * kFloat * 4});
  if (ranks > 1 && device != DeviceKind::kCpu && stages(config))
    plan.lines.push_back({"staging", "pinned host memory for what travels", HostStagedOptions{}.bytes()});
  return plan;
}

MemoryPlan plan_reading(const config::Config& config, int64_t vocabulary, const Hosts& hosts, DeviceKind device,
                        Reading reading) {
  const auto ranks = static_cast<int64_t>(hosts.of_rank.size());
  const TransformerShape shape = model_shape(config, vocabulary);
  MemoryPlan plan;
  plan.ranks = static_cast<int>(ranks);
  plan.trains = false;
  plan.dense_parameters = count_dense_parameters(shape);
  plan.lines.push_back({"dense parameters", "value, and room for a gradient", plan.dense_parameters * 2 * kFloat});
  std::map<std::string, TableShape> tables;
  for (const MemorySite& site : shape.memories) tables.emplace(site.table.name, site.table);
  for (const auto& [name, table] : tables) {
    plan.value_parameters += table.slots * table.width;
    const int64_t row_bytes = table.width * bytes_of(table.type) + ValueTable::kUsageBytes;
    plan.lines.push_back(
        {"table " + name, "value, counters", table_bytes((table.slots + ranks - 1) / ranks, row_bytes, table)});
  }
  const bool generates = reading == Reading::kGeneration;
  const int64_t tokens = generates ? 1 : windows_at_once(shape.context) * shape.context;
  plan.lines.push_back({"activations", fmt::format("{} at a time", counted(tokens, "token")),
                        capped(reading_bytes(shape, static_cast<double>(tokens), hosts, device))});
  if (device != DeviceKind::kCpu) plan.lines.push_back(scratch_line(shape, tokens, 1, math_of(config)));
  if (generates)
    plan.lines.push_back({"context", "keys and values of its tokens, in each block",
                          capped(2.0 * static_cast<double>(shape.layers * shape.context) *
                                 static_cast<double>(shape.block.width * kFloat))});
  place_on(device, plan);
  return plan;
}

void check_fits(const MemoryPlan& plan, const Communicator& world, Device device, const GpuSeat& seat, bool shown) {
  const auto& of_rank = world.hosts().of_rank;
  const int host = of_rank[static_cast<size_t>(world.rank())];
  const std::string& name = world.hosts().name_of(world.rank());
  const int64_t ranks = std::ranges::count(of_rank, host);
  const auto check = [&](int64_t need, int64_t total, const std::string& where, const char* remedy) {
    if (total <= 0 || need <= total) return;
    const std::string text = fmt::format("{} on {}, which has {} for it",
                                         need < kMost ? bytes_text(static_cast<double>(need)) : kOverTheMost, where,
                                         bytes_text(static_cast<double>(total)));
    if (!plan.trains) user_error("this checkpoint needs {}; start it on more {}", text, remedy);
    user_error("this run needs {}{}; use more {} or a smaller model", text, shown ? "" : ": see pkmesh train --dry-run",
               remedy);
  };
  // OpenBLAS maps so much for each thread that multiplies and, where it gets none, asks again for ever.
  constexpr int64_t kBlasBytes = int64_t{128} << 20;
  const int64_t space = plan.bytes_per_rank(DeviceKind::kCpu) + threads() * kBlasBytes;
  const int64_t left = process_memory().address_space_left;
  if (space > left)
    user_error("{} of address space are left to a rank on {}, and it needs {}: raise `ulimit -v`",
               bytes_text(static_cast<double>(std::max<int64_t>(left, 0))), name,
               bytes_text(static_cast<double>(space)));
  check(ranks * plan.bytes_per_rank(DeviceKind::kCpu), process_memory().machine_total, name, "hosts");
  if (device.kind == DeviceKind::kCpu) return;
  const std::string shared = seat.ranks > 1 ? fmt::format(" for {} ranks", seat.ranks) : "";
  check(seat.ranks * plan.bytes_per_rank(device.kind), total_memory(device),
        fmt::format("{} of {}{}", to_string(device), name, shared), "GPUs");
}

int64_t planned_vocabulary(const config::Config& config) {
  const std::string& tokens = config.data().train();
  std::error_code error;
  if (std::filesystem::exists(tokens, error)) return load_tokenizer(tokens)->vocabulary_size();
  const bool bytes = config.tokenizer().kind() == config::Tokenizer::BYTE;
  return bytes ? make_byte_tokenizer()->vocabulary_size() : config.tokenizer().vocabulary();
}

std::string to_text(const MemoryPlan& plan) {
  std::string text =
      fmt::format("memory per rank ({}), {} dense and {} value parameters\n", counted(plan.ranks, "rank"),
                  planned_count(plan.dense_parameters), planned_count(plan.value_parameters));
  for (const auto& line : plan.lines)
    text += fmt::format("  {:<18}{:>12}   {}\n", line.what, planned_bytes(line.bytes), line.how);
  const int64_t on_gpu = plan.bytes_per_rank(DeviceKind::kCuda);
  if (on_gpu > 0) text += fmt::format("  {:<18}{:>12}\n", "total on a GPU", planned_bytes(on_gpu));
  return text + fmt::format("  {:<18}{:>12}\n", on_gpu > 0 ? "total on the host" : "total",
                            planned_bytes(plan.bytes_per_rank(DeviceKind::kCpu)));
}

}  // namespace pkmesh
