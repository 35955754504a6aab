// SPDX-License-Identifier: Apache-2.0
#include "launcher/trainer.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "layers/elementwise.h"
#include "runtime/range.h"
#include "runtime/text.h"

namespace pkmesh {
namespace {

std::vector<Share> decaying_ranges(const Parameters& parameters) {
  std::vector<Share> ranges;
  for (const auto& entry : parameters.entries())
    if (entry.decays) ranges.push_back({entry.offset, entry.offset + entry.count});
  return ranges;
}

// "not finite: the loss on 1 rank, row gradients on 3 ranks"
std::string why_closed(const Gate& gate) {
  std::vector<std::string> where;
  const auto add = [&](std::string_view what, int64_t ranks) {
    if (ranks > 0) where.push_back(fmt::format("{} on {}", what, counted(ranks, "rank")));
  };
  add("the loss", gate.bad_loss);
  add("dense gradients", gate.bad_dense);
  add("row gradients", gate.bad_values);
  return where.empty() ? "none of its tokens counts" : fmt::format("not finite: {}", fmt::join(where, ", "));
}

// Parameters of which ranks exchange apart what their inputs read.
int64_t head(const config::Config& config, Model& model, int64_t vocabulary) {
  const Communicator& world = model.world();
  const bool apart = world.shares_work() && input_rows_apart(config, vocabulary, world.size());
  return apart ? model.transformer().token_parameters() : 0;
}

// What a rank's share of the gate is made of.
enum Figure : int64_t { kDenseSquares, kValuesSquares, kLossSum, kFigures };

}  // namespace

Trainer::Trainer(const config::Config& config, Communicator& world, Device device, BatchSampler batches,
                 int64_t vocabulary)
    : config_(config),
      model_(config, world, device, vocabulary),
      world_(model_.world()),
      batches_(std::move(batches)),
      buckets_(world_, model_.parameters().gradients(),
               {bucket_bytes(config), gradient_wire(config), head(config, model_, vocabulary)}),
      adam_(device, buckets_.mine(), dense_options(config), decaying_ranges(model_.parameters())),
      staged_(device, 2 * config.train().accumulate() * batch().largest_share() * batches_.context(),
              MemoryKind::kHost),
      figures_(device, kFigures),
      statistics_(device, std::ssize(model_.parameters().states())) {
  for (const auto& table : model_.transformer().tables())
    row_optimizers_.emplace_back(device, table->shape().name, table->placement(), world.rank(), table->shape().width,
                                 row_options(config), config.train().seed());
  moved_.resize(row_optimizers_.size());
  if (world_.shares_work())
    squared_ = buckets_.mine();
  else  // this rank has all sums
    squared_ = {share_of(model_.parameters().count(), world_.rank(), world_.size())};
  if (buckets_.head() > 0) {
    std::vector<std::vector<Share>> shares;
    for (int rank = 0; rank < world_.size(); ++rank) shares.push_back(buckets_.shares(rank));
    input_rows_ = std::make_unique<SharedRows>(world_, config.model().width(),
                                               batch().largest_share() * batches_.context(), std::move(shares));
  }
  if (config.train().precision() == config::Train::FP16) scale_losses({});
}

// Where a table has one backward pass in a step, and what its update needs to know is known in it: the norm of all
// tables' gradients, if they are clipped, and no loss scale that must be lowered when gradients overflow. The same on
// all ranks.
bool Trainer::rows_may_move_in_backward() {
  const auto& tables = model_.transformer().tables();
  return model_.stream().device().kind == DeviceKind::kCpu && config_.train().accumulate() == 1 && !scaler_.on() &&
         tables.size() == model_.transformer().shape().memories.size() && (tables.size() == 1 || !clips_values());
}

BatchShape Trainer::batch() const {
  return {config_.train().batch(), config_.train().accumulate(), world_.rank(), world_.size()};
}

StepFigures Trainer::step() {
  Range range("step");
  Communicator::Label label(world_, fmt::format("step {}", step_ + 1));
  const auto begin = Clock::now();
  const Ledger before = world_.ledger();
  Stream& stream = model_.stream();
  clear(stream, model_.parameters().gradients());
  clear(stream, figures_.span());
  copy(stream, model_.parameters().states(), statistics_.span());
  stage_batches();
  for (int64_t micro = 0; micro < config_.train().accumulate(); ++micro) forward_backward(micro);
  buckets_.finish();
  input_gradients_.wait();

  const Gate gate = decide(world_, gate_share());
  StepFigures figures = describe(gate);
  if (gate.open())
    update(gate, figures.learning_rate);
  else
    copy(stream, statistics_.span(), model_.parameters().states());
  scaler_.update(gate.finite_gradients());
  std::ranges::fill(moved_, std::nullopt);
  for (const auto& table : model_.transformer().tables()) table->forget_pending();
  ++step_;
  figures.communication = world_.ledger() - before;
  figures.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  return figures;
}

// The ids of all micro-steps at once: the copies of the step before are over, for its gate was waited for behind them.
void Trainer::stage_batches() {
  int32_t* memory = staged_.data();
  for (int64_t micro = 0; micro < config_.train().accumulate(); ++micro) {
    const SequenceRange share = batch().share(step_, micro);
    const Matrix<int32_t> inputs(memory, share.count(), batches_.context());
    const Matrix<int32_t> targets(memory + inputs.count(), share.count(), batches_.context());
    batches_.fill(share, inputs, targets);
    memory += 2 * batch().largest_share() * batches_.context();
  }
}

void Trainer::forward_backward(int64_t micro) {
  StepContext context = model_.begin(/*training=*/true);
  const SequenceRange share = batch().share(step_, micro);
  const int64_t length = batches_.context();
  const auto ids = context.arena.take<int32_t>(2, share.count(), length);
  const int64_t first = micro * 2 * batch().largest_share() * length;
  copy(context.stream, staged_.view().rows(first, first + ids.count()).flat(), ids.flat());

  const int64_t micro_steps = config_.train().accumulate();
  if (rows_may_move_in_backward())
    context.move_rows = [this](const ValueTable& table, const RowGradients& gradients, Vector<float> dweights) {
      return move_rows(table, gradients, dweights);
    };
  context.all_tokens = batch().micro_step(step_, micro).count() * length;
  context.draw = step_ * micro_steps + micro;
  context.await_parameters = [this](Share parameters) { buckets_.wait_for(parameters); };
  if (micro + 1 == micro_steps) context.gradients_final = [this](Share final) { buckets_.ready(final); };
  if (input_rows_ != nullptr) context.input_rows = read_input_rows(context, ids[0].reshape(ids[0].count()));
  context.first_token = (share.begin - batch().micro_step(step_, micro).begin) * length;
  // The mean over all tokens of the step, whatever rank and micro-step they are in, times the loss scale.
  const auto scale = static_cast<float>(scaler_.scale() / static_cast<double>(config_.train().batch() * length));
  const auto losses = model_.transformer().losses_and_gradients(context, ids[0], ids[1], scale);
  if (input_rows_ != nullptr)
    input_gradients_ = input_rows_->add(context.input_rows->gradients.flat(), model_.parameters().gradients());
  add_sum(context.stream, losses, figures_.view().rows(kLossSum, kLossSum + 1));
}

// Before all of the table has come; and room for their gradients.
InputRows Trainer::read_input_rows(StepContext& context, Vector<const int32_t> ids) {
  const auto places = context.arena.take<int32_t>(ids.count());
  input_rows_->ask(ids.flat(), places.flat());
  const auto values = context.arena.take<float>(input_rows_->count(), config_.model().width());
  input_rows_->fetch(model_.parameters().values(), values.flat());
  const auto gradients = context.arena.take<float>(values.size(0), values.size(1));
  clear(context.stream, gradients.flat());
  return {places, values, gradients};
}

void Trainer::add_row_squares(size_t table, const RowGradients& gradients, Vector<double> total) {
  if (clips_values())
    row_optimizers_[table].add_squares(model_.stream(), gradients, total);
  else  // all that the gate asks is whether they are finite
    row_optimizers_[table].add_squares_bound(model_.stream(), gradients, total);
}

bool Trainer::move_rows(const ValueTable& table, const RowGradients& gradients, Vector<float> dweights) {
  const auto& tables = model_.transformer().tables();
  const auto i =
      static_cast<size_t>(std::ranges::find(tables, &table, &std::unique_ptr<ValueTable>::get) - tables.begin());
  GateShare share = {.tokens = 1};  // of what the gate weighs, the rows' gradients alone
  add_row_squares(i, gradients, Vector<double>(&share.values_squares, 1));
  const Gate gate = decide(world_, share);
  if (!gate.open()) return false;
  update_rows(i, gradients, gate, dweights);
  moved_[i] = share.values_squares;
  return true;
}

GateShare Trainer::gate_share() {
  Range range("gate");
  Stream& stream = model_.stream();
  const auto figure = [&](Figure which) { return figures_.view().rows(which, which + 1); };
  const Vector<const float> gradients(model_.parameters().gradients().data(), model_.parameters().count());
  for (const Share& part : squared_)
    add_sum_of_squares(stream, gradients.rows(part.begin, part.end), figure(kDenseSquares));
  for (size_t i = 0; i < row_optimizers_.size(); ++i)
    if (!moved_[i]) add_row_squares(i, model_.transformer().tables()[i]->row_gradients(stream), figure(kValuesSquares));
  read_figures_.start(stream, figures_.span());
  GateShare share;
  for (int64_t micro = 0; micro < config_.train().accumulate(); ++micro)
    share.tokens += static_cast<double>(batch().share(step_, micro).count() * batches_.context());
  const auto figures = read_figures_.wait();
  share.dense_squares = figures[kDenseSquares];
  share.values_squares = figures[kValuesSquares];
  for (const auto& squares : moved_) share.values_squares += squares.value_or(0);
  share.loss_sum = figures[kLossSum];
  return share;
}

StepFigures Trainer::describe(const Gate& gate) const {
  StepFigures figures;
  figures.step = step_ + 1;
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  figures.loss = gate.bad_loss > 0 ? kNaN : gate.loss_sum / gate.tokens;
  figures.loss_scale = scaler_.scale();
  figures.dense_norm = gate.bad_dense > 0 ? kNaN : std::sqrt(gate.dense_squares) / scaler_.scale();
  if (clips_values())
    figures.values_norm = gate.bad_values > 0 ? kNaN : std::sqrt(gate.values_squares) / scaler_.scale();
  figures.learning_rate = learning_rate(dense_schedule(config_), step_ + 1);
  figures.tokens = static_cast<int64_t>(gate.tokens);
  figures.skipped = !gate.open();
  if (figures.skipped) figures.why_skipped = why_closed(gate);
  if (figures.skipped && std::ranges::any_of(moved_, [](const auto& moved) { return moved.has_value(); }))
    figures.why_skipped += "; table rows had moved in the backward pass";
  if (figures.skipped && scaler_.on()) figures.why_skipped += fmt::format("; the loss scale was {}", scaler_.scale());
  return figures;
}

CheckpointContents Trainer::contents() {
  CheckpointContents contents = model().contents();
  const auto add_moments = [&](const char* prefix, std::span<float> moments) {
    const auto& entries = model_.parameters().entries();
    if (world_.shares_work())
      add_dense_shares(contents, prefix, entries, moments, buckets_.mine());
    else
      add_dense(contents, prefix, entries, moments);
  };
  add_moments("adam.m/", adam_.first_moments());
  add_moments("adam.v/", adam_.second_moments());
  if (scaler_.on())
    contents.dense.push_back(
        dense_tensor("loss_scale", Vector<double>(scaler_.state().data(), std::ssize(scaler_.state()))));
  for (size_t i = 0; i < row_optimizers_.size(); ++i)
    for (const StateTensor& state : row_optimizers_[i].state())
      std::visit([&](const auto& rows) { contents.tables[i].tensors.push_back(row_tensor(state.name, rows)); },
                 state.data);
  return contents;
}

// What gradients are multiplied by: clipping, and the loss scale undone.
double Trainer::update_scale(double squares, double clip_norm) const {
  return clip_factor(std::sqrt(squares) / scaler_.scale(), clip_norm) / scaler_.scale();
}

void Trainer::update_rows(size_t table, const RowGradients& gradients, const Gate& gate, Vector<float> dweights) {
  const double scale = update_scale(gate.values_squares, config_.values().clip_norm());
  const double rate = learning_rate(values_schedule(config_), step_ + 1);
  row_optimizers_[table].step(model_.stream(), model_.transformer().tables()[table]->rows(), gradients, scale, rate,
                              updates() + 1, dweights);
}

void Trainer::update(const Gate& gate, double rate) {
  Range range("update");
  const Parameters& dense = model_.parameters();
  const double scale = update_scale(gate.dense_squares, config_.optimizer().clip_norm());
  buckets_.change(dense.values(), [&](Share numbers) {
    adam_.step(model_.stream(), dense.values(), dense.gradients(), scale, rate, updates() + 1, numbers);
  });
  for (size_t i = 0; i < row_optimizers_.size(); ++i)
    if (!moved_[i]) update_rows(i, model_.transformer().tables()[i]->row_gradients(model_.stream()), gate);
}

Model& Trainer::model() {
  buckets_.wait_for({0, model_.parameters().count()});
  return model_;
}

}  // namespace pkmesh
