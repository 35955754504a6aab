// SPDX-License-Identifier: Apache-2.0
#include "launcher/evaluator.h"

#include <array>
#include <cmath>
#include <numbers>

#include "layers/elementwise.h"
#include "runtime/range.h"
#include "runtime/readback.h"
#include "runtime/text.h"

namespace pkmesh {
double Evaluation::perplexity() const {
  return std::exp(loss);
}

double Evaluation::perplexity_per_word(TextSize text, int64_t all_tokens) const {
  return std::exp(loss * static_cast<double>(all_tokens) / static_cast<double>(text.words));
}

double Evaluation::bits_per_byte(TextSize text, int64_t all_tokens) const {
  return loss * static_cast<double>(all_tokens) / static_cast<double>(text.bytes) / std::numbers::ln2;
}

std::optional<Evaluation> evaluate(Model& model, const Tokens& tokens, int64_t sequences, int64_t at_once,
                                   const std::function<bool()>& stop) {
  Range range("evaluate");
  const EvaluationWindows windows(tokens, model.transformer().shape().context);
  const int64_t all = sequences > 0 ? std::min(sequences, windows.count()) : windows.count();
  const int64_t whole = windows.targets() / windows.context();
  model.reset_usage();
  Communicator& world = model.world();
  at_once = std::min(at_once, (all + world.size() - 1) / world.size());

  // Every rank makes the same passes, for each pass holds collectives; a share may be empty. Windows of one pass are as
  // long: a shorter last one has a pass of its own.
  std::array<double, 2> sums = {0, 0};  // losses, tokens
  Stream& stream = model.stream();
  const Device device = stream.device();
  Buffer<int32_t> staged(device, 2 * at_once * windows.context(), MemoryKind::kHost);
  Event sent(device);  // what is staged has been copied
  const Buffer<double> loss(device, 1);
  for (int64_t begin = 0, end = 0; begin < all; begin = end) {
    if (stop && stop()) return std::nullopt;
    end = std::min({all, begin < whole ? whole : all, begin + at_once * world.size()});
    const int64_t mine = std::min(end, begin + at_once * world.rank());
    const SequenceRange share = {mine, std::min(end, mine + at_once)};
    StepContext context = model.begin(/*training=*/false);
    const auto ids = context.arena.take<int32_t>(2, share.count(), windows.length(begin));
    const View<int32_t, 3> host(staged.data(), ids.shape());
    sent.synchronize();
    windows.fill(share, host[0], host[1]);
    sums[1] += static_cast<double>(ids.size(1) * ids.size(2));
    copy(stream, host.flat(), ids.flat());
    sent.record(stream);
    add_sum(stream, model.transformer().losses(context, ids[0], ids[1]), loss.view());
  }
  sums[0] = OnHost(stream, loss.span()).span()[0];
  world.all_reduce(std::span<double>(sums), Reduction::kSum, Purpose::kControl);

  Evaluation evaluation;
  evaluation.loss = unsigned_nan(sums[0] / sums[1]);
  evaluation.tokens = static_cast<int64_t>(sums[1]);
  evaluation.sequences = all;
  evaluation.whole = all == windows.count();
  evaluation.memories = model.memory_health();
  return evaluation;
}

}  // namespace pkmesh
