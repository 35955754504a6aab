// SPDX-License-Identifier: Apache-2.0
#include "layers/memory/value_table.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>

#include "runtime/parallel.h"
#include "runtime/random.h"
#include "runtime/range.h"
#include "runtime/readback.h"

namespace pkmesh {
namespace {

template <class T>
void load(const Matrix<T>& rows, int64_t row, std::span<float> out) {
  std::transform(rows[row].begin(), rows[row].end(), out.begin(), [](T x) { return static_cast<float>(x); });
}
template <class T>
void store(const Matrix<T>& rows, int64_t row, std::span<const float> values) {
  std::transform(values.begin(), values.end(), rows[row].data(), [](float x) { return T(x); });
}

std::variant<Buffer<float>, Buffer<bf16>, Buffer<fp16>> make_rows(RowType type, Device device, int64_t count) {
  switch (type) {
    case RowType::kFloat:
      return Buffer<float>(device, count);
    case RowType::kBf16:
      return Buffer<bf16>(device, count);
    case RowType::kFp16:
      return Buffer<fp16>(device, count);
  }
  PKM_CHECK(false, "no row type {}", static_cast<int>(type));
}

}  // namespace

int64_t bytes_of(RowType type) {
  return type == RowType::kFloat ? 4 : 2;
}

ValueTable::ValueTable(const TableShape& shape, const Communicator& world, Device device, uint64_t seed)
    : shape_(shape),
      placement_(shape.placement, shape.slots, world.size()),
      rank_(world.rank()),
      device_(device),
      arena_(device) {
  PKM_CHECK(shape.slots >= 1 && shape.width >= 1, "table {} of {} rows of width {}", shape.name, shape.slots,
            shape.width);
  rows_ = make_rows(shape.type, device, local_rows() * shape.width);
  best_ = Buffer<uint32_t>(device, (shape.slots + 31) / 32);
  usage_counts_ = Buffer<uint32_t>(device, local_rows());
  usage_weights_ = Buffer<float>(device, local_rows());
  initialise(seed);
}

TableRows ValueTable::rows() const {
  return std::visit([&](const auto& buffer) -> TableRows { return buffer.view().reshape(local_rows(), shape_.width); },
                    rows_);
}

void ValueTable::initialise(uint64_t seed) {
  const Range range("initialise table");
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape_.width)));
  Stream stream(device_);
  PKM_DISPATCH(stream, draw_rows, Random(seed, shape_.name), scale, placement_, rank_, rows());
  stream.synchronize();
}

void ValueTable::read_row(int64_t local, std::span<float> out) const {
  PKM_CHECK(std::ssize(out) == shape_.width, "{} floats for a row of {}", out.size(), shape_.width);
  std::visit([&](const auto& matrix) { load(matrix, local, out); }, rows());
}

void ValueTable::write_row(int64_t local, std::span<const float> values) {
  PKM_CHECK(std::ssize(values) == shape_.width, "{} floats for a row of {}", values.size(), shape_.width);
  std::visit([&](const auto& matrix) { store(matrix, local, values); }, rows());
}

Matrix<float> ValueTable::take_gradients(Stream& stream, int64_t pairs) {
  const int64_t width = shape_.width;
  const int64_t needed = (gradients_kept_ + pairs) * width;
  if (needed > gradients_.count()) {
    Buffer<float> grown(device_, std::max(needed, gradients_.count() * 3 / 2));
    const auto kept = static_cast<size_t>(gradients_kept_ * width);
    copy(stream, gradients_.span().first(kept), grown.span().first(kept));
    gradients_ = std::move(grown);
    sorted_.reset();
  }
  gradients_taken_ = pairs;
  return Matrix<float>(gradients_.data() + gradients_kept_ * width, pairs, width);
}

bool ValueTable::sums(int64_t selections) const {
  return device_.kind == DeviceKind::kCpu && read_often(selections, shape_.slots);
}

void ValueTable::backward(StepContext& context, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
                          Vector<float> dweights) {
  Stream& stream = context.stream;
  const int64_t pairs = pair_offsets.count() - 1;
  PKM_CHECK(pairs == gradients_taken_, "{} pairs, but gradients of {}", pairs, gradients_taken_);
  const Matrix<const float> d_output(gradients_.data() + gradients_kept_ * shape_.width, pairs, shape_.width);
  // Copies of the small things: the route lives in the arena of its micro-batch.
  const auto kept_selections = arena_.take<Selection>(selections.count());
  const auto kept_offsets = arena_.take<int32_t>(pair_offsets.count());
  copy(stream, selections.flat(), kept_selections.flat());
  copy(stream, pair_offsets.flat(), kept_offsets.flat());
  pieces_.push_back({kept_selections, kept_offsets, gradients_kept_});
  gradients_kept_ += std::exchange(gradients_taken_, 0);
  sorted_.reset();

  if (context.move_rows) {
    PKM_CHECK(pieces_.size() == 1, "table {}: {} backward passes in one step, but its rows move in the first",
              shape_.name, pieces_.size());
    const ArenaScope scope(context.arena);
    const auto by_row = context.arena.take<float>(selections.count());
    const RowGradients& gradients = row_gradients(stream);
    if (context.move_rows(*this, gradients, by_row)) return scatter_scalars(stream, by_row, gradients.order, dweights);
  }
  weight_gradients(stream, rows(), selections, pair_offsets, d_output, dweights);
}

// As if each row had been read once, with weight 1, and its sum were that pair's output gradient.
void ValueTable::backward_by_row(Stream& stream, Vector<const Selection> selections, Vector<const int32_t> pair_offsets,
                                 Matrix<const float> d_output, Vector<float> dweights) {
  const int64_t most = std::min(selections.count(), local_rows());
  const RowSums sums = {arena_.take<int32_t>(most), take_gradients(stream, most)};
  gradients_taken_ = 0;
  const int64_t count = fold(sums, sum_by_row(stream, rows(), selections, pair_offsets, d_output, dweights, sums));
  // Room for as many rows as there may be: how many are read differs from step to step.
  const Vector<Selection> reads(arena_.take<Selection>(most).data(), count);
  const Vector<int32_t> offsets(arena_.take<int32_t>(most + 1).data(), count + 1);
  for (int64_t u = 0; u < count; ++u) reads[u] = {sums.rows[u], 1.0F};
  std::iota(offsets.begin(), offsets.end(), 0);
  pieces_.push_back({reads, offsets, gradients_kept_});
  gradients_kept_ += count;
  sorted_.reset();
}

int64_t ValueTable::fold(const RowSums& sums, int64_t count) {
  if (places_.empty()) places_.assign(static_cast<size_t>(local_rows()), -1);
  const int64_t width = shape_.width;
  const auto place_of = [&](int64_t u) -> int32_t& { return places_[static_cast<size_t>(sums.rows[u])]; };
  parallel_for(0, count, 1 + 16384 / width, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      if (place_of(u) < 0) continue;
      float* const sum = gradients_.data() + place_of(u) * width;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) sum[j] += sums.sums(u, j);
    }
  });
  int64_t left = 0;
  for (int64_t u = 0; u < count; ++u) {
    if (place_of(u) >= 0) continue;
    if (left < u) std::ranges::copy(sums.sums[u], sums.sums[left].begin());
    place_of(u) = static_cast<int32_t>(gradients_kept_ + left);
    sums.rows[left++] = sums.rows[u];
  }
  return left;
}

const RowGradients& ValueTable::row_gradients(Stream& stream) {
  const Matrix<const float> d_output(gradients_.data(), gradients_kept_, shape_.width);
  if (!sorted_) sorted_ = sort_by_row(stream, arena_, pieces_, d_output, local_rows());
  return *sorted_;
}

void ValueTable::forget_pending() {
  pieces_.clear();
  places_.clear();
  sorted_.reset();
  gradients_kept_ = 0;
  gradients_taken_ = 0;
  arena_.reset();
}

void ValueTable::count_usage(Stream& stream, Vector<const Selection> selections) {
  const Range range("count usage");
  PKM_DISPATCH(stream, count_usage, selections, usage_counts_.view(), usage_weights_.view());
}

void ValueTable::mark_best(Stream& stream, Matrix<const int32_t> slots, int64_t neighbours) {
  const Range range("mark best");
  PKM_DISPATCH(stream, mark_best, slots, neighbours, best_.view());
}

// Asking ranks send each slot that they marked to its owner, once.
std::vector<uint8_t> ValueTable::best_rows(Stream& stream, Communicator& world) const {
  const OnHost best(stream, best_.span());
  std::vector<std::vector<int32_t>> of_owner(static_cast<size_t>(world.size()));
  for (size_t word = 0; word < best.span().size(); ++word)
    for (uint32_t bits = best.span()[word]; bits != 0; bits &= bits - 1) {
      const auto slot = static_cast<int32_t>(32 * word) + std::countr_zero(bits);
      const RowAddress address = placement_.locate(slot);
      of_owner[static_cast<size_t>(address.owner)].push_back(address.local);
    }
  std::vector<int64_t> sent;
  std::vector<int32_t> rows;
  for (const auto& list : of_owner) {
    sent.push_back(std::ssize(list));
    rows.insert(rows.end(), list.begin(), list.end());
  }
  std::vector<int64_t> received(sent.size());
  world.all_to_all<int64_t>(sent, std::span<int64_t>(received), Purpose::kControl);
  std::vector<int32_t> mine(static_cast<size_t>(std::accumulate(received.begin(), received.end(), int64_t{0})));
  world.all_to_all_v<int32_t>(rows, sent, std::span<int32_t>(mine), received, Purpose::kControl);
  std::vector<uint8_t> flags(static_cast<size_t>(local_rows()));
  for (const int32_t local : mine) flags[static_cast<size_t>(local)] = 1;
  return flags;
}

void ValueTable::reset_usage(Stream& stream) {
  clear(stream, best_.span());
  clear(stream, usage_counts_.span());
  clear(stream, usage_weights_.span());
}

}  // namespace pkmesh
