// SPDX-License-Identifier: Apache-2.0
#include "launcher/bench_machine.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "io/batches.h"
#include "launcher/bench_measure.h"
#include "layers/gemm.h"
#include "runtime/buffer.h"
#include "runtime/cpu.h"
#include "runtime/parallel.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

constexpr int64_t kSmallestCopy = int64_t{1} << 20;

double per_second(double amount, const Spread& milliseconds) {
  return amount / (milliseconds.min * 1e-3);
}

// `bytes` / 2 from the one to the other, by the C library or by a plain loop: neither is the faster one at every size.
double copy_rate_of(const Buffer<uint64_t>& source, const Buffer<uint64_t>& target, int64_t bytes, int repeats) {
  const int64_t words = bytes / 16;
  const auto in_pieces = [&](const auto& copy) {
    return measure(repeats, [&] {
      parallel_for(0, words, 512, [&](int64_t begin, int64_t end) {
        copy(source.data() + begin, target.data() + begin, end - begin);
      });
    });
  };
  const Spread library = in_pieces([](const uint64_t* from, uint64_t* to, int64_t count) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(uint64_t));
  });
  const Spread loop = in_pieces([](const uint64_t* from, uint64_t* __restrict to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i] + 1;  // as a bare copy it would become the library's
  });
  return per_second(16 * static_cast<double>(words), library.min < loop.min ? library : loop);
}

// Rows of 8-byte words: sums of integers vectorise in any order, so that only memory counts. Four rows at once: the
// misses of one hide behind those of the others. A pass takes other rows than the one before, so that it finds none of
// them in a cache that is smaller than the table.
class Rows {
 public:
  explicit Rows(const CeilingSizes& sizes)
      : words_(std::max<int64_t>(1, sizes.row_bytes / 8)),
        rows_(std::clamp<int64_t>(sizes.table_bytes / (8 * words_), 4, std::max<int64_t>(4, sizes.table_rows))),
        reads_(std::min(sizes.reads, rows_) / 4 * 4),
        memory_({}, rows_ * words_) {
    parallel_for(0, memory_.count(), 4096, [&](int64_t begin, int64_t end) {
      std::fill(memory_.data() + begin, memory_.data() + end, uint64_t{1});
    });
    const Permutation shuffled(rows_, 1, 0);
    const int64_t used = rows_ / reads_ * reads_;
    for (int64_t i = 0; i < used; ++i) random_.push_back(shuffled(i));
    ascending_ = random_;
    for (auto pass = ascending_.begin(); pass != ascending_.end(); pass += reads_) std::sort(pass, pass + reads_);
  }

  double bytes() const { return static_cast<double>(reads_) * static_cast<double>(words_) * 8; }  // of a pass

  // In random order: what a token reads stands anywhere. Returns the sum of all words, so that all must be read.
  uint64_t read(bool prefetch) {
    return pass(random_, prefetch, [&](const uint64_t* a, const uint64_t* b, const uint64_t* c, const uint64_t* d) {
      uint64_t sum = 0;
      for (int64_t j = 0; j < words_; ++j) sum += (a[j] + b[j]) + (c[j] + d[j]);
      return sum;
    });
  }

  // In ascending order: what is rewritten once can be sorted before.
  void rewrite(bool prefetch) {
    pass(ascending_, prefetch,
         [&](uint64_t* __restrict a, uint64_t* __restrict b, uint64_t* __restrict c, uint64_t* __restrict d) {
           for (int64_t j = 0; j < words_; ++j) ++a[j], ++b[j], ++c[j], ++d[j];
           return uint64_t{0};
         });
  }

 private:
  template <class Fours>
  uint64_t pass(const std::vector<int64_t>& order, bool prefetch, const Fours& fours) {
    const int64_t* rows = order.data() + next_;
    const auto row = [&](int64_t i) { return memory_.data() + rows[i] * words_; };
    uint64_t total = 0;
    parallel_for(0, reads_ / 4, 16, [&](int64_t begin, int64_t end) {
      uint64_t sum = 0;
      for (int64_t i = 4 * begin; i < 4 * end; i += 4) {
        for (int64_t ahead = i + 4; prefetch && ahead < std::min(i + 8, 4 * end); ++ahead) fetch(row(ahead));
        sum += fours(row(i), row(i + 1), row(i + 2), row(i + 3));
      }
      __atomic_fetch_add(&total, sum, __ATOMIC_RELAXED);
    });
    next_ = (next_ + reads_) % std::ssize(order);
    return total;
  }

  // The beginning of a row into the cache; what follows is for the processor to foresee.
  void fetch(const uint64_t* row) const {
    constexpr int64_t kLine = 8;
    constexpr int64_t kMost = 128;
    for (int64_t j = 0; j < std::min(words_, kMost); j += kLine) __builtin_prefetch(row + j);
  }

  int64_t words_;
  int64_t rows_;
  int64_t reads_;  // of a pass
  Buffer<uint64_t> memory_;
  std::vector<int64_t> random_;  // whole passes, one after the other
  std::vector<int64_t> ascending_;
  int64_t next_ = 0;  // where the next pass begins
};

// What ceilings are measured in.
struct Memory {
  explicit Memory(const CeilingSizes& sizes)
      : source({}, sizes.copy_bytes / 16), target({}, source.count()), rows(sizes) {
    for (auto& matrix : matrices) matrix = Buffer<float>({}, sizes.product * sizes.product);
    std::ranges::fill(source.span(), uint64_t{1});
    std::ranges::fill(matrices[0].span(), 0.5F);
    std::ranges::fill(matrices[1].span(), 0.25F);
  }
  Buffer<uint64_t> source;
  Buffer<uint64_t> target;
  Rows rows;
  std::array<Buffer<float>, 3> matrices;
};

double product_rate(Stream& stream, const std::array<Buffer<float>, 3>& matrices, int64_t side, int repeats) {
  const auto matrix = [&](size_t i) { return Matrix<float>(matrices[i].data(), side, side); };
  const Spread spread = measure(repeats, [&] {
    gemm(stream, Transpose::kNo, Transpose::kYes, 1.0F, Matrix<const float>(matrix(0)), Matrix<const float>(matrix(1)),
         0.0F, matrix(2));
  });
  return per_second(2 * std::pow(static_cast<double>(side), 3), spread);
}

}  // namespace

int64_t CeilingSizes::memory_bytes() const {
  const int64_t rows = std::min(table_rows, table_bytes / row_bytes);
  return copy_bytes + rows * (row_bytes + 2 * static_cast<int64_t>(sizeof(int64_t))) + 12 * product * product;
}

double Ceilings::copy_rate(double bytes) const {
  PKM_CHECK(!copies.empty(), "copying was not measured");
  const auto above = std::ranges::find_if(copies, [&](const Copy& copy) { return copy.bytes >= bytes; });
  if (above == copies.begin()) return copies.front().bytes_per_s;
  if (above == copies.end()) return copies.back().bytes_per_s;
  const Copy& low = *(above - 1);
  const double share = std::log(bytes / low.bytes) / std::log(above->bytes / low.bytes);
  return low.bytes_per_s + share * (above->bytes_per_s - low.bytes_per_s);
}

double Ceilings::floor_ms(const Cost& cost) const {
  double moving = cost.streamed / copy_rate(cost.streamed);
  if (cost.rows_read > 0) moving += cost.rows_read / rows_read;
  if (cost.rows_updated > 0) moving += cost.rows_updated / rows_updated;
  return 1e3 * std::max(moving, cost.flops / flops);
}

double Ceilings::floor_ms(const std::vector<Cost>& phases) const {
  double total = 0;
  for (const Cost& phase : phases) total += floor_ms(phase);
  return total;
}

Ceilings measure_ceilings(Stream& stream, const CeilingSizes& sizes, int repeats) {
  const auto memory = std::make_shared<Memory>(sizes);
  Ceilings ceilings;
  ceilings.memory = memory;
  const auto add_copy = [&](int64_t bytes) {
    ceilings.copies.push_back(
        {static_cast<double>(bytes), copy_rate_of(memory->source, memory->target, bytes, repeats)});
  };
  for (int64_t bytes = std::min(kSmallestCopy, sizes.copy_bytes); bytes < sizes.copy_bytes; bytes *= 4) add_copy(bytes);
  add_copy(sizes.copy_bytes);
  Rows& rows = memory->rows;
  volatile uint64_t sink = 0;  // what is read must be used
  for (const bool prefetch : {false, true}) {
    const Spread read = measure(repeats, [&] { sink = rows.read(prefetch); });
    const Spread rewritten = measure(repeats, [&] { rows.rewrite(prefetch); });
    ceilings.rows_read = std::max(ceilings.rows_read, per_second(rows.bytes(), read));
    ceilings.rows_updated = std::max(ceilings.rows_updated, per_second(2 * rows.bytes(), rewritten));
  }
  ceilings.flops = product_rate(stream, memory->matrices, sizes.product, repeats);
  return ceilings;
}

std::string to_text(const Ceilings& ceilings, const CeilingSizes& sizes) {
  std::string text =
      fmt::format("ceilings of this machine, {}, {}\n", counted(threads(), "thread"), to_string(cpu_level()));
  text += "  copy, read + written       ";
  for (const auto& copy : ceilings.copies)
    text += fmt::format("{}{}: {:.1f}", &copy == ceilings.copies.data() ? "" : ", ", bytes_text(copy.bytes),
                        copy.bytes_per_s / 1e9);
  text += " GB/s\n";
  const auto table = static_cast<double>(std::min(sizes.table_bytes, sizes.table_rows * sizes.row_bytes));
  text += fmt::format("  random rows of {:<10}  read {:.1f} GB/s, rewritten {:.1f} GB/s (read + written), table {}\n",
                      bytes_text(static_cast<double>(sizes.row_bytes)), ceilings.rows_read / 1e9,
                      ceilings.rows_updated / 1e9, bytes_text(table));
  return text + fmt::format("  matrix product, {0} x {0}   {1:.0f} GFLOP/s", sizes.product, ceilings.flops / 1e9);
}

nlohmann::json to_json(const Ceilings& ceilings) {
  nlohmann::json copies = nlohmann::json::array();
  for (const auto& copy : ceilings.copies) copies.push_back({{"bytes", copy.bytes}, {"bytes_per_s", copy.bytes_per_s}});
  return {{"threads", threads()},
          {"copy", copies},
          {"rows_read_bytes_per_s", ceilings.rows_read},
          {"rows_updated_bytes_per_s", ceilings.rows_updated},
          {"flops_per_s", ceilings.flops}};
}

}  // namespace pkmesh
