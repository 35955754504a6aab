// SPDX-License-Identifier: Apache-2.0
#include "optim/sparse_adam.h"

#include <algorithm>

#include "runtime/range.h"

namespace pkmesh {
namespace {

using Update = RowAdamOptions::Update;
using Correction = RowAdamOptions::Correction;
using SecondMoment = RowAdamOptions::SecondMoment;

std::variant<Buffer<float>, Buffer<bf16>> moments(Device device, int64_t count, bool in_bf16) {
  if (in_bf16) return Buffer<bf16>(device, count);
  return Buffer<float>(device, count);
}

RowMatrix matrix(const std::variant<Buffer<float>, Buffer<bf16>>& buffer, int64_t rows, int64_t width) {
  return std::visit([&](const auto& b) -> RowMatrix { return b.view().reshape(rows, width); }, buffer);
}

bool in_bf16(const RowMatrix& matrix) {
  return std::holds_alternative<Matrix<bf16>>(matrix);
}

void check(const RowGradients& gradients) {
  const int64_t touched = gradients.rows.count();
  check_shape("row gradients: offsets", gradients.offsets, {{"touched rows + 1", touched + 1}});
  check_shape("row gradients: sources", gradients.sources, {{"contributions", gradients.weights.count()}});
}

template <class Rows>
void check_rows(const char* what, const Rows& matrix, int64_t rows, int64_t width) {
  std::visit([&](const auto& m) { check_shape(what, m, {{"rows", rows}, {"width", width}}); }, matrix);
}

}  // namespace

void update_rows(Stream& stream, const RowUpdate& update, const TableRows& values, const RowState& state,
                 const RowGradients& gradients, Vector<float> dweights) {
  PKM_CHECK(update.step >= 1, "steps count from 1, got {}", update.step);
  check(gradients);
  const auto [rows, width] = std::visit([](const auto& m) { return m.shape(); }, values);
  const bool row_wise = update.options.second_moment == SecondMoment::kRowWise;
  check_rows("update_rows: values", values, rows, width);
  check_rows("update_rows: first moments", state.first, rows, width);
  check_rows("update_rows: second moments", state.second, rows, row_wise ? 1 : width);
  PKM_CHECK(!row_wise || !in_bf16(state.second), "a row-wise second moment is fp32");
  if (update.options.correction == Correction::kRowCounter)
    check_shape("update_rows: steps", state.steps, {{"rows", rows}});
  if (gradients.rows.empty()) return;
  PKM_CHECK(gradients.d_output.size(1) == width, "output gradients of width {} for rows of width {}",
            gradients.d_output.size(1), width);
  Range range("update rows");
  if (!dweights.empty()) check_shape("update_rows: dweights", dweights, {{"contributions", gradients.weights.count()}});
  PKM_DISPATCH(stream, update_rows, update, values, state, gradients, dweights);
}

void row_squares(Stream& stream, const RowGradients& gradients, Vector<double> squares) {
  check(gradients);
  check_shape("row_squares: squares", squares, {{"touched rows", gradients.rows.count()}});
  if (squares.empty()) return;
  Range range("row squares");
  PKM_DISPATCH(stream, row_squares, gradients, squares);
}

RowOptimizer::RowOptimizer(Device device, std::string table, const Placement& placement, int rank, int64_t width,
                           const RowAdamOptions& options, uint64_t seed)
    : device_(device),
      table_(std::move(table)),
      placement_(placement),
      rank_(rank),
      rows_(placement.local_rows(rank)),
      width_(width),
      options_(options),
      seed_(seed),
      first_(moments(device, rows_ * width, options.bf16_moments)) {
  const bool row_wise = options.second_moment == SecondMoment::kRowWise;
  const bool own_steps = options.correction == Correction::kRowCounter;
  PKM_CHECK(!own_steps || options.update != Update::kDense, "{}: rows that all move have no step counts of their own",
            table_);
  second_ = moments(device, row_wise ? rows_ : rows_ * width, options.bf16_moments && !row_wise);
  if (own_steps) steps_ = Buffer<uint32_t>(device, rows_);
}

RowState RowOptimizer::views() const {
  const bool row_wise = options_.second_moment == SecondMoment::kRowWise;
  return {matrix(first_, rows_, width_), matrix(second_, rows_, row_wise ? 1 : width_), steps_.view()};
}

Vector<double> RowOptimizer::take_squares(int64_t rows) {
  if (squares_.count() < rows) squares_ = Buffer<double>(device_, std::min(rows_, rows * 3 / 2));
  return squares_.view().rows(0, rows);
}

void RowOptimizer::add_squares(Stream& stream, const RowGradients& gradients, Vector<double> total) {
  check_shape("row optimizer: total", total, {{"one", 1}});
  if (gradients.rows.empty()) return;
  const Vector<double> squares = take_squares(gradients.rows.count());
  row_squares(stream, gradients, squares);
  PKM_DISPATCH(stream, add_in_order, squares, total);
}

void RowOptimizer::add_squares_bound(Stream& stream, const RowGradients& gradients, Vector<double> total) {
  check_shape("row optimizer: total", total, {{"one", 1}});
  check(gradients);
  if (gradients.rows.empty()) return;
  const Range range("row squares bound");
  PKM_DISPATCH(stream, squares_bound, gradients, total);
}

// The same gradients with every row of the shard listed: the other rows have no contribution, a gradient of zero.
RowGradients RowOptimizer::all_rows(Stream& stream, const RowGradients& gradients) {
  if (every_offset_.count() == 0) {
    every_row_ = Buffer<int32_t>(device_, rows_);
    every_offset_ = Buffer<int64_t>(device_, rows_ + 2);
  }
  const EveryRow every = {every_row_.view(), every_offset_.view().rows(0, rows_ + 1),
                          every_offset_.view().rows(rows_ + 1, rows_ + 2)};
  PKM_DISPATCH(stream, list_every_row, gradients, every);
  RowGradients all = gradients;
  all.rows = every.rows;
  all.offsets = every.offsets;
  all.touched = every.touched;
  return all;
}

void RowOptimizer::step(Stream& stream, const TableRows& values, const RowGradients& gradients, double scale, double lr,
                        int64_t step, Vector<float> dweights) {
  check_rows("row optimizer: values", values, rows_, width_);
  const RowGradients listed = options_.update == Update::kDense ? all_rows(stream, gradients) : gradients;
  const RowUpdate update = {.options = options_,
                            .scale = static_cast<float>(scale),
                            .lr = lr,
                            .step = step,
                            .value_rounding = Random(seed_, table_ + ".rounding", step),
                            .first_rounding = Random(seed_, table_ + ".first_moments.rounding", step),
                            .second_rounding = Random(seed_, table_ + ".second_moments.rounding", step),
                            .placement = placement_,
                            .rank = rank_};
  update_rows(stream, update, values, views(), listed, dweights);
}

std::vector<StateTensor> RowOptimizer::state() const {
  const auto tensor = [&](const char* name, const RowMatrix& data) {
    return std::visit([&](const auto& m) -> StateTensor { return {name, m}; }, data);
  };
  const RowState state = views();
  std::vector<StateTensor> result = {tensor("m", state.first), tensor("v", state.second)};
  if (options_.correction == Correction::kRowCounter) result.push_back({"steps", state.steps.reshape(rows_, 1)});
  return result;
}

int64_t RowOptimizer::bytes_per_row(const RowAdamOptions& options, int64_t width) {
  const int64_t moments = width * static_cast<int64_t>(options.bf16_moments ? sizeof(bf16) : sizeof(float));
  const bool row_wise = options.second_moment == SecondMoment::kRowWise;
  const bool own_steps = options.correction == Correction::kRowCounter;
  return moments + (row_wise ? static_cast<int64_t>(sizeof(float)) : moments) +
         (own_steps ? static_cast<int64_t>(sizeof(uint32_t)) : 0);
}

}  // namespace pkmesh
