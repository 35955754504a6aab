// SPDX-License-Identifier: Apache-2.0
// `pkmesh bench kernels`: the memory's kernels alone, on the configuration's device, with row numbers that are drawn:
// uniformly, and skewed as words are (Zipf). Time is the device's own; the floor is bytes over its copy bandwidth.
#include <fmt/format.h>

#include <bit>

#include "launcher/bench.h"
#include "layers/elementwise.h"
#include "layers/memory/select.h"
#include "optim/sparse_adam.h"

namespace pkmesh {
namespace {

// Milliseconds between two events around work().
template <class Work>
Spread time_on(Stream& stream, int repeats, const Work& work) {
  Event begin(stream.device(), Event::Kind::kTimed);
  Event end(stream.device(), Event::Kind::kTimed);
  std::vector<double> samples;
  for (int i = -2; i < repeats; ++i) {  // two warm-ups: the first allocates
    begin.record(stream);
    work();
    end.record(stream);
    const double sample = Event::milliseconds(begin, end);
    if (i >= 0) samples.push_back(sample);
  }
  return spread_of(std::move(samples));
}

// Bytes read and written, in GB/s.
double copy_bandwidth(Stream& stream, const Buffer<float>& from, const Buffer<float>& to, int repeats) {
  fill(stream, from.view(), 1.0F);
  const Spread ms = time_on(stream, repeats, [&] { copy<float>(stream, from.span(), to.span()); });
  return 8 * static_cast<double>(from.count()) / ms.min / 1e6;
}

template <class T>
Buffer<T> to_device(Stream& stream, const std::vector<T>& values) {
  Buffer<T> buffer(stream.device(), std::ssize(values));
  copy<T>(stream, values, buffer.span());
  stream.synchronize();
  return buffer;
}

// Memory that is written, so that its pages exist; as floats, and as bf16, all elements are near 0.01.
template <class T>
Buffer<T> written(Stream& stream, int64_t count) {
  Buffer<T> buffer(stream.device(), count);
  fill(stream, Vector<float>(reinterpret_cast<float*>(buffer.data()), count * static_cast<int64_t>(sizeof(T)) / 4),
       std::bit_cast<float>(0x3C233C23U));
  return buffer;
}

// Row numbers in [0, rows). Of Zipf's law with exponent 1 the k-th of them has a share of 1 / k, up to a factor: its
// distribution function is about log k / log rows. A multiplication strews neighbouring ranks over the table.
std::vector<int32_t> draw_rows(int64_t count, int64_t rows, bool zipf) {
  const Random random(7, zipf ? "zipf rows" : "uniform rows");
  constexpr int64_t kStrew = 2654435761;  // a prime
  std::vector<int32_t> drawn;
  drawn.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const auto u = static_cast<double>(random.uniform(static_cast<uint64_t>(i)));
    const double rank = zipf ? std::pow(static_cast<double>(rows), u) - 1 : u * static_cast<double>(rows);
    drawn.push_back(static_cast<int32_t>(std::min(static_cast<int64_t>(rank), rows - 1) * kStrew % rows));
  }
  return drawn;
}

class KernelBench {
 public:
  KernelBench(const config::Config& config, Communicator& world, const BenchOptions& options, BenchReport& report)
      : site_(first_memory(config)),
        row_options_(row_options(config)),
        tokens_(int64_t{config.train().batch()} * config.model().context()),
        placement_(PlacementKind::kBlock, site_.table.slots, 1),
        stream_(choose_device(config, world, find_gpu_seat(config, world), /*trains=*/false)),
        repeats_(options.repeats),
        report_(report),
        copied_from_(stream_.device(), options.ceilings.copy_bytes / 8),
        copied_to_(stream_.device(), copied_from_.count()),
        copy_(copy_bandwidth(stream_, copied_from_, copied_to_, repeats_)) {}

  void run() {
    const LookupShape s = shape();
    report_.figures["copy_gb_per_s"] = copy_;
    report_.figures["device"] = to_string(stream_.device());
    report_.line(fmt::format(
        "{}: copies {:.0f} GB/s (read and written); {} tokens, {} selections each, {} rows of {} bytes, {} of moments",
        to_string(stream_.device()), copy_, tokens_, s.heads * s.neighbours, site_.table.slots, s.row_bytes,
        s.moment_bytes));
    report_.line(fmt::format("\n{:<26}{:>24}{:>11}{:>10}{:>10}{:>12}{:>10}", "", "ms (min-max)", "floor MiB",
                             "floor ms", "of floor", "asked MiB", "of copy"));
    time_select();
    const auto rows = make_rows();
    RowOptimizer optimizer(stream_.device(), "bench", placement_, 0, site_.table.width, row_options_, 1);
    for (const bool zipf : {false, true}) time_rows(zipf ? "zipf" : "uniform", zipf, rows, optimizer);
  }

 private:
  LookupShape shape() const { return lookup_shape(site_, row_options_, tokens_); }

  TableRows make_rows() {
    const int64_t count = site_.table.slots * site_.table.width;
    const auto as_matrix = [&](const auto& buffer) -> TableRows {
      return buffer.view().reshape(site_.table.slots, site_.table.width);
    };
    switch (site_.table.type) {
      case RowType::kFloat:
        return as_matrix(std::get<0>(memory_ = written<float>(stream_, count)));
      case RowType::kBf16:
        return as_matrix(std::get<1>(memory_ = written<bf16>(stream_, count)));
      case RowType::kFp16:
        return as_matrix(std::get<2>(memory_ = written<fp16>(stream_, count)));
    }
    PKM_CHECK(false, "no row type {}", static_cast<int>(site_.table.type));
  }

  // floor: bytes that any kernel moves, each row that is read once; asked: bytes that this one asks the memory for.
  void line(const std::string& name, const Spread& ms, double floor, double asked) {
    const double floor_ms = floor / copy_ / 1e6;
    report_.line(fmt::format("{:<26}{:>24}{:>11.1f}{:>10.3f}{:>9.0f}%{:>12.1f}{:>9.0f}%", name, to_text(ms),
                             floor / (1 << 20), floor_ms, 100 * floor_ms / ms.median, asked / (1 << 20),
                             100 * asked / copy_ / 1e6 / ms.median));
    report_.figures["kernels"].push_back({{"name", name},
                                          {"ms", to_json(ms)},
                                          {"floor_bytes", floor},
                                          {"floor_ms", floor_ms},
                                          {"of_floor", floor_ms / ms.median},
                                          {"asked_bytes", asked},
                                          {"of_copy", asked / copy_ / 1e6 / ms.median}});
  }

  void time_select() {
    const LookupShape s = shape();
    const int64_t half = s.key_width / 2;
    const auto random = [&](int64_t count) {
      std::vector<float> values(static_cast<size_t>(count));
      Random(8, "bench select", count).normals(0, count, 1.0F, values.data());
      return to_device(stream_, values);
    };
    const auto queries = random(tokens_ * s.features());
    const auto keys = random(s.heads * 2 * s.sub_keys * half);
    const Buffer<int32_t> slots(stream_.device(), s.selections());
    const Buffer<float> weights(stream_.device(), s.selections());
    const Spread ms = time_on(stream_, repeats_, [&] {
      select_forward(stream_, queries.view().reshape(tokens_, s.heads, s.key_width),
                     keys.view().reshape(s.heads, 2, s.sub_keys, half),
                     slots.view().reshape(tokens_, s.heads * s.neighbours),
                     weights.view().reshape(tokens_, s.heads * s.neighbours));
    });
    const double floor = cost::select_forward(s).bytes();
    const double scores = 4.0 * static_cast<double>(tokens_ * s.heads * 2 * s.sub_keys);
    line("select", ms, floor, floor + 2 * scores);  // scores written and read
  }

  void time_rows(const std::string& law, bool zipf, const TableRows& rows, RowOptimizer& optimizer) {
    const LookupShape s = shape();
    const int64_t reads = s.heads * s.neighbours;
    const int64_t width = site_.table.width;
    std::vector<Selection> drawn;
    std::vector<int32_t> numbers = draw_rows(tokens_ * reads, site_.table.slots, zipf);
    for (const int32_t row : numbers) drawn.push_back({row, 1.0F / static_cast<float>(reads)});
    std::ranges::sort(numbers);
    const auto distinct = static_cast<double>(std::unique(numbers.begin(), numbers.end()) - numbers.begin());
    std::vector<int32_t> offsets;
    for (int64_t t = 0; t <= tokens_; ++t) offsets.push_back(static_cast<int32_t>(t * reads));
    const auto selections = to_device(stream_, drawn);
    const auto pair_offsets = to_device(stream_, offsets);
    const auto outputs = written<float>(stream_, tokens_ * width);
    const auto gradients = outputs.view().reshape(tokens_, width);
    const Buffer<float> dweights(stream_.device(), std::ssize(drawn));
    const Buffer<double> squares(stream_.device(), 1);
    Arena arena(stream_.device());

    const auto chosen = static_cast<double>(drawn.size());
    const auto row = static_cast<double>(s.row_bytes);
    const auto state = row + static_cast<double>(s.moment_bytes);
    const double outs = 4.0 * static_cast<double>(tokens_ * width);
    const double vector = 4.0 * static_cast<double>(width);
    const auto name = [&](const char* kernel) { return fmt::format("{}, {}", kernel, law); };
    line(name("gather and pool"),
         time_on(stream_, repeats_,
                 [&] { pooled_gather(stream_, rows, selections.view(), pair_offsets.view(), gradients); }),
         8 * chosen + distinct * row + outs, 8 * chosen + chosen * row + outs);
    line(name("weight gradients"),
         time_on(stream_, repeats_,
                 [&] {
                   weight_gradients(stream_, rows, selections.view(), pair_offsets.view(), gradients, dweights.view());
                 }),
         12 * chosen + distinct * row + outs, 12 * chosen + chosen * row + outs);
    const GradientPiece piece = {selections.view(), pair_offsets.view(), 0};
    RowGradients sorted;
    line(name("sort by row"),
         time_on(stream_, repeats_,
                 [&] {
                   arena.reset();
                   sorted = sort_by_row(stream_, arena, {&piece, 1}, gradients, site_.table.slots);
                 }),
         16 * chosen + 12 * distinct, 16 * chosen + 12 * distinct);
    line(name("row gradients: norms"),
         time_on(stream_, repeats_, [&] { optimizer.add_squares(stream_, sorted, squares.view()); }),
         8 * chosen + outs + 12 * distinct, 8 * chosen + chosen * vector + 12 * distinct);
    line(name("row gradients + update"),
         time_on(stream_, repeats_, [&] { optimizer.step(stream_, rows, sorted, 1e-3, 1e-6, ++step_); }),
         8 * chosen + outs + 12 * distinct + 2 * distinct * state,
         8 * chosen + chosen * vector + 12 * distinct + 2 * distinct * state);
  }

  MemorySite site_;
  RowAdamOptions row_options_;
  int64_t tokens_;
  Placement placement_;
  Stream stream_;
  int repeats_;
  BenchReport& report_;
  Buffer<float> copied_from_;  // kept, like Ceilings::memory
  Buffer<float> copied_to_;
  double copy_;
  std::variant<Buffer<float>, Buffer<bf16>, Buffer<fp16>> memory_;
  int64_t step_ = 0;
};

}  // namespace

void bench_kernels(Communicator& world, const config::Config& config, const BenchOptions& options,
                   BenchReport& report) {
  KernelBench(config, world, options, report).run();
}

}  // namespace pkmesh
