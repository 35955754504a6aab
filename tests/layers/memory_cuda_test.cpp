// SPDX-License-Identifier: Apache-2.0
// The memory layer's CUDA kernels of rows against the CPU's (of queries: query_cuda_test.cpp). Where inputs are small
// integers every sum is exact in any order, and results must be equal; elsewhere they agree to the tolerance beside the
// test.
#include <numeric>

#include "comm/route.h"
#include "layers/memory/pooled.h"
#include "layers/memory/row_gradients.h"
#include "layers/memory/value_table.h"
#include "tests/reference/draw.h"
#include "tests/reference/placed.h"

namespace pkmesh {
namespace {

using reference::Draw;
using reference::equal_bytes;
using reference::expect_close;
using reference::GpuTest;
using reference::Placed;

// Pairs of 0 to 40 selections, of which a third reads row 0.
struct Reads {
  Reads(Draw& draw, int64_t pairs, int64_t rows) : offsets{0} {
    for (int64_t pair = 0; pair < pairs; ++pair) {
      for (uint32_t i = pair % 3 == 0 ? draw.below(5) : draw.below(41); i > 0; --i)
        selections.push_back({static_cast<int32_t>(draw.below(draw.below(3) == 0 ? 1 : rows)),
                              0.25F * static_cast<float>(draw.below(9))});
      offsets.push_back(static_cast<int32_t>(selections.size()));
    }
  }
  std::vector<Selection> selections;
  std::vector<int32_t> offsets;
};

using MemoryCuda = GpuTest;

struct PooledResult {
  std::vector<float> partials, dweights, combined, copied, scattered;
  bool same_bits(const PooledResult& other) const {
    return equal_bytes(partials, other.partials) && equal_bytes(dweights, other.dweights) &&
           equal_bytes(combined, other.combined) && equal_bytes(copied, other.copied) &&
           equal_bytes(scattered, other.scattered);
  }
};

template <class T>
PooledResult pooled(Stream& stream, int64_t pairs, int64_t width, int64_t lead) {
  Draw draw("pooled");
  constexpr int64_t kRows = 37;
  const Reads reads(draw, pairs, kRows);
  const auto count = std::ssize(reads.selections);
  const Placed<T> rows(stream, draw.integers<T>(kRows * width, 8), lead);
  const Placed<Selection> selections(stream, reads.selections);
  const Placed<int32_t> offsets(stream, reads.offsets);
  const Placed<float> gradients(stream, draw.integers(pairs * width, 4), lead);
  const Placed<float> partials(stream, pairs * width, lead);
  const Placed<float> dweights(stream, count, lead);
  pooled_gather(stream, rows.view(kRows, width), selections.view(), offsets.view(), partials.view(pairs, width));
  weight_gradients(stream, rows.view(kRows, width), selections.view(), offsets.view(), gradients.view(pairs, width),
                   dweights.view());
  // Tokens own one pair, then two, then none, and so on.
  std::vector<int32_t> token_offsets = {0};
  while (token_offsets.back() < pairs)
    token_offsets.push_back(
        static_cast<int32_t>(std::min<int64_t>(pairs, token_offsets.back() + std::ssize(token_offsets) % 3)));
  const auto tokens = std::ssize(token_offsets) - 1;
  std::vector<int32_t> order(static_cast<size_t>(std::max<int64_t>(pairs, count)));
  std::iota(order.rbegin(), order.rend(), 0);
  const Placed<int32_t> reversed_pairs(stream, {order.end() - pairs, order.end()});
  const Placed<int32_t> reversed(stream, {order.end() - count, order.end()});
  const Placed<int32_t> token_starts(stream, token_offsets);
  const Placed<float> combined(stream, tokens * width, lead);
  combine_partials(stream, gradients.view(pairs, width), token_starts.view(), reversed_pairs.view(),
                   combined.view(tokens, width));
  const Placed<float> copied(stream, pairs * width, lead);
  copy_rows(stream, gradients.view(pairs, width), reversed_pairs.view(), copied.view(pairs, width));
  const Placed<float> scattered(stream, count);
  scatter_scalars(stream, dweights.view(), reversed.view(), scattered.view());
  return {partials.values(), dweights.values(), combined.values(), copied.values(), scattered.values()};
}

TEST_F(MemoryCuda, PooledOpsAreExactOverIntegers) {
  for (const int64_t pairs : {0, 1, 70})
    for (const int64_t width : {1, 6, 8, 64, 252, 1024, 2056})
      for (const int64_t lead : {Placed<float>::kAligned, Placed<float>::kOdd})
        for (const RowType type : {RowType::kFloat, RowType::kBf16, RowType::kFp16}) {
          SCOPED_TRACE(fmt::format("pairs {} width {} lead {} type {}", pairs, width, lead, static_cast<int>(type)));
          const auto [expected, actual] = on_both([&](Stream& stream) {
            if (type == RowType::kBf16) return pooled<bf16>(stream, pairs, width, lead);
            if (type == RowType::kFp16) return pooled<fp16>(stream, pairs, width, lead);
            return pooled<float>(stream, pairs, width, lead);
          });
          EXPECT_EQ(actual.partials, expected.partials);
          EXPECT_EQ(actual.dweights, expected.dweights);
          EXPECT_EQ(actual.combined, expected.combined);
          EXPECT_EQ(actual.copied, expected.copied);
          EXPECT_EQ(actual.scattered, expected.scattered);
        }
}

struct SortResult {
  std::vector<int32_t> rows, sources;
  std::vector<int64_t> offsets;
  std::vector<float> weights;
  bool operator==(const SortResult&) const = default;
  bool same_bits(const SortResult& other) const { return *this == other; }
};

TEST_F(MemoryCuda, RowsAreSortedAsOnTheCpu) {
  for (const int64_t local_rows : {1, 2, 300, 5'000'000})
    for (const int64_t pairs : {0, 1, 2000}) {
      SCOPED_TRACE(fmt::format("{} rows, {} pairs", local_rows, pairs));
      const auto [expected, actual] = on_both([&](Stream& stream) {
        Draw draw("sort by row");
        const Reads first(draw, pairs, local_rows);
        const Reads second(draw, pairs / 2, local_rows);
        const Placed<Selection> a(stream, first.selections);
        const Placed<Selection> b(stream, second.selections);
        const Placed<int32_t> a_offsets(stream, first.offsets);
        const Placed<int32_t> b_offsets(stream, second.offsets);
        const std::vector<GradientPiece> pieces = {{a.view(), a_offsets.view(), 0},
                                                   {b.view(), b_offsets.view(), pairs}};
        const Placed<float> d_output(stream, pairs + pairs / 2);
        Arena arena(stream.device());
        const RowGradients sorted = sort_by_row(stream, arena, pieces, d_output.view(pairs + pairs / 2, 1), local_rows);
        const auto host = [&]<class T>(Vector<const T> vector) {
          std::vector<T> values(static_cast<size_t>(vector.count()));
          copy(stream, vector.flat(), std::span(values));
          stream.synchronize();
          return values;
        };
        const int64_t touched = host(sorted.touched)[0];  // on the GPU the arrays have room for more
        EXPECT_LE(touched, sorted.rows.count());
        return SortResult{host(sorted.rows.rows(0, touched)), host(sorted.sources),
                          host(sorted.offsets.rows(0, touched + 1)), host(sorted.weights)};
      });
      EXPECT_EQ(actual, expected);
    }
}

struct OwnerResult {
  std::vector<int32_t> order, pair_token, token_offsets, token_pairs, locals;
  std::vector<float> weights;
  std::vector<uint16_t> pair_lengths;
  std::vector<int64_t> selection_counts, pair_counts;
  bool operator==(const OwnerResult&) const = default;
  bool same_bits(const OwnerResult& other) const { return *this == other; }
};

// Of `rows` rows, by tokens of `per_token` selections and of fewer.
OwnerResult owners(Stream& stream, const Leg& leg, int64_t rows, int64_t tokens, int64_t per_token) {
  Draw draw("sort by owner");
  std::vector<Selection> drawn;
  std::vector<int32_t> ends = {0};
  for (int64_t token = 0; token < tokens; ++token) {
    const int64_t selections = token % 3 == 0 ? per_token : draw.below(per_token + 1);
    for (int64_t i = 0; i < selections; ++i)
      drawn.push_back({static_cast<int32_t>(draw.below(i % 4 == 0 ? 1 : rows)), static_cast<float>(drawn.size())});
    ends.push_back(static_cast<int32_t>(drawn.size()));
  }
  const int64_t count = std::ssize(drawn);
  const int64_t peers = leg.peers();
  const int64_t most = std::min(tokens * peers, count);
  const Placed<Selection> asked(stream, drawn);
  const Placed<int32_t> offsets(stream, ends);
  const Placed<RowAddress> addresses(stream, count);
  const Placed<Selection> selections(stream, count);
  const Placed<int32_t> order(stream, count);
  const Placed<uint16_t> pair_lengths(stream, most);
  const Placed<int32_t> pair_token(stream, most);
  const Placed<int32_t> token_offsets(stream, tokens + 1);
  const Placed<int32_t> token_pairs(stream, most);
  const Placed<int64_t> selection_counts(stream, peers);
  const Placed<int64_t> pair_counts(stream, peers);
  const OwnerOrder out = {addresses.view(),    selections.view(),       order.view(),
                          pair_lengths.view(), pair_token.view(),       token_offsets.view(),
                          token_pairs.view(),  selection_counts.view(), pair_counts.view()};
  PKM_DISPATCH(stream, sort_by_owner, leg, Asked{asked.view(), offsets.view()}, out);
  const auto counts = pair_counts.values();
  const int64_t pairs = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  OwnerResult result = {.order = order.values(),
                        .pair_token = pair_token.values(pairs),
                        .token_offsets = token_offsets.values(),
                        .token_pairs = token_pairs.values(pairs),
                        .locals = {},
                        .weights = {},
                        .pair_lengths = pair_lengths.values(pairs),
                        .selection_counts = selection_counts.values(),
                        .pair_counts = counts};
  for (const Selection& selection : selections.values()) {
    result.locals.push_back(selection.row);
    result.weights.push_back(selection.weight);
  }
  return result;
}

TEST_F(MemoryCuda, SelectionsAreSortedByOwnerAsOnTheCpu) {
  for (const PlacementKind kind : {PlacementKind::kBlock, PlacementKind::kCyclic, PlacementKind::kHash})
    for (const int ranks : {2, 4, 40}) {
      const Placement placement(kind, 1009, ranks);
      for (const Leg& leg : {Leg::direct(placement), Leg::to_hosts(placement, 1, 2), Leg::within_host(placement, 1, 2)})
        for (const int64_t tokens : {0, 1, 131})
          for (const int64_t per_token : {1, 6, 32, 70}) {
            SCOPED_TRACE(fmt::format("{} ranks, {} peers, {} tokens of {}", ranks, leg.peers(), tokens, per_token));
            const auto [expected, actual] =
                on_both([&](Stream& stream) { return owners(stream, leg, placement.rows(), tokens, per_token); });
            EXPECT_EQ(actual, expected);
          }
    }
}

struct UsageResult {
  std::vector<uint32_t> counts;
  std::vector<float> weights;
  bool operator==(const UsageResult&) const = default;
  bool same_bits(const UsageResult& other) const { return *this == other; }
};

TEST_F(MemoryCuda, UsageIsCountedExactly) {
  for (const int64_t rows : {1, 7, 100'000})
    for (const int64_t pairs : {0, 1, 900}) {
      const auto [expected, actual] = on_both([&](Stream& stream) {
        Draw draw("usage");
        const Placed<Selection> selections(stream, Reads(draw, pairs, rows).selections);
        const Placed<uint32_t> counts(stream, std::vector<uint32_t>(static_cast<size_t>(rows), 3));
        const Placed<float> weights(stream, std::vector<float>(static_cast<size_t>(rows), 0.5F));
        PKM_DISPATCH(stream, count_usage, selections.view(), counts.view(), weights.view());
        return UsageResult{counts.values(), weights.values()};
      });
      EXPECT_EQ(actual, expected) << rows << " rows, " << pairs << " pairs";
    }
}

TEST_F(MemoryCuda, PairsOfTokensAndOffsetsOfLengthsAreTheCpus) {
  struct Pairs {
    std::vector<int32_t> rows, offsets, summed;
    std::vector<float> weights;
    bool operator==(const Pairs&) const = default;
    bool same_bits(const Pairs& other) const { return *this == other; }
  };
  for (const int64_t tokens : {0, 1, 777})
    for (const int64_t per_token : {1, 5, 128}) {
      SCOPED_TRACE(fmt::format("{} tokens of {}", tokens, per_token));
      const auto [expected, actual] = on_both([&](Stream& stream) {
        Draw draw("pairs");
        const int64_t count = tokens * per_token;
        std::vector<int32_t> drawn;
        for (int64_t i = 0; i < count; ++i) drawn.push_back(static_cast<int32_t>(draw.below(1000)));
        const Placed<int32_t> rows(stream, drawn);
        const Placed<float> weights(stream, draw.normals(count));
        const Placed<Selection> selections(stream, count);
        const Placed<int32_t> offsets(stream, tokens + 1);
        PKM_DISPATCH(stream, select_by_token, rows.view(tokens, per_token), weights.view(tokens, per_token),
                     selections.view(), offsets.view());
        std::vector<uint16_t> drawn_lengths;
        int64_t total = 0;
        for (int64_t i = 0; i < tokens; ++i) {
          drawn_lengths.push_back(static_cast<uint16_t>(draw.below(65536)));  // their sums need more than 16 bits
          total += drawn_lengths.back();
        }
        const Placed<uint16_t> lengths(stream, drawn_lengths);
        const Placed<int32_t> summed(stream, tokens + 1);
        PKM_DISPATCH(stream, add_lengths, lengths.view(), total, summed.view());
        Pairs pairs = {.rows = {}, .offsets = offsets.values(), .summed = summed.values(), .weights = {}};
        for (const Selection& selection : selections.values()) {
          pairs.rows.push_back(selection.row);
          pairs.weights.push_back(selection.weight);
        }
        return pairs;
      });
      EXPECT_EQ(actual, expected);
    }
}

TEST_F(MemoryCuda, BestSlotsAreMarkedAsOnTheCpu) {
  struct Bits {
    std::vector<uint32_t> words;
    bool operator==(const Bits&) const = default;
    bool same_bits(const Bits& other) const { return *this == other; }
  };
  for (const int64_t tokens : {0, 1, 900}) {
    const auto [expected, actual] = on_both([&](Stream& stream) {
      Draw draw("best");
      std::vector<int32_t> drawn;
      for (int64_t i = 0; i < tokens * 8; ++i) drawn.push_back(static_cast<int32_t>(draw.below(1000)));
      const Placed<int32_t> slots(stream, drawn);
      const Placed<uint32_t> words(stream, std::vector<uint32_t>(32, 2));
      PKM_DISPATCH(stream, mark_best, slots.view(tokens, 8), 4, words.view());
      return Bits{words.values()};
    });
    EXPECT_EQ(actual, expected) << tokens << " tokens";
  }
}

// The same random bits; logarithm and sine are the device's own.
TEST_F(MemoryCuda, RowsStartAsOnTheCpu) {
  constexpr double kTolerance = 2e-6;
  constexpr double kBf16Step = 0x1p-7;
  struct Rows {
    std::vector<float> values;
    bool same_bits(const Rows& other) const { return equal_bytes(values, other.values); }
  };
  const auto drawn = [&]<class T>(Stream& stream, T, const Placement& placement, int rank, int64_t width) {
    const int64_t rows = placement.local_rows(rank);
    const Placed<T> values(stream, rows * width);
    PKM_DISPATCH(stream, draw_rows, Random(3, "rows"), 0.25F, placement, rank, values.view(rows, width));
    Rows result;
    for (const T value : values.values()) result.values.push_back(static_cast<float>(value));
    return result;
  };
  for (const PlacementKind kind : {PlacementKind::kBlock, PlacementKind::kCyclic, PlacementKind::kHash})
    for (const int ranks : {1, 3})
      for (const int64_t width : {1, 6, 64}) {
        SCOPED_TRACE(fmt::format("placement {} over {}, width {}", static_cast<int>(kind), ranks, width));
        const Placement placement(kind, 301, ranks);
        const auto [expected, actual] =
            on_both([&](Stream& stream) { return drawn(stream, float{}, placement, ranks - 1, width); });
        expect_close("fp32", actual.values, expected.values, kTolerance);
        const auto [expected_half, half] =
            on_both([&](Stream& stream) { return drawn(stream, bf16{}, placement, ranks - 1, width); });
        expect_close("bf16", half.values, expected_half.values, kBf16Step);
      }
}

}  // namespace
}  // namespace pkmesh
