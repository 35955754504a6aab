// SPDX-License-Identifier: Apache-2.0
// The sharded lookup against the whole table gathered on one place and indexed. With small integers every sum is exact
// in any order: outputs, gradients of the weights and of the rows must be equal bit for bit on any number of ranks,
// with any placement.
#include <algorithm>
#include <map>
#include <mutex>
#include <set>

#include "comm/self.h"
#include "comm/thread.h"
#include "layers/memory/exchange.h"
#include "runtime/random.h"
#include "tests/reference/tensor.h"
#include "tests/reference/thread_scope.h"

namespace pkmesh {
namespace {

using namespace reference;

constexpr int64_t kTokens = 41;
constexpr int64_t kSelections = 6;

// What all ranks together look up, `passes` times: micro-batches, or layers that share the table.
struct Lookup {
  Lookup(int64_t slot_count, int64_t value_width, bool exact, int64_t pass_count = 2)
      : slots_in_table(slot_count), width(value_width), passes(pass_count) {
    const Random random(11, "exchange test");
    uint64_t at = 0;
    const auto integer = [&](int bound) {
      return static_cast<float>(static_cast<int>(random.bits(at++) % static_cast<uint32_t>(2 * bound + 1)) - bound);
    };
    const auto number = [&](int bound) { return exact ? integer(bound) : random.normal(at++); };
    for (int64_t i = 0; i < slot_count * width; ++i) table.push_back(number(4));
    for (int64_t i = 0; i < passes * kTokens * kSelections; ++i) {
      // Every third token has one slot many times over; slot 0 is hot.
      const bool narrow = i / kSelections % 3 == 0;
      slots.push_back(static_cast<int32_t>(random.bits(at++) % static_cast<uint32_t>(narrow ? 1 : slot_count)));
      weights.push_back(exact ? std::abs(integer(3)) * 0.25F : random.uniform(at++));
    }
    for (int64_t i = 0; i < passes * kTokens * width; ++i) dout.push_back(number(3));
  }
  int64_t slots_in_table, width, passes;
  std::vector<float> table;    // (N, width)
  std::vector<int32_t> slots;  // (passes, T, S)
  std::vector<float> weights;  // (passes, T, S)
  std::vector<float> dout;     // (passes, T, width)
};

struct Result {
  std::vector<float> out, dweights;             // (passes, T, width), (passes, T, S)
  std::map<int32_t, std::vector<float>> drows;  // by global row: touched ones only
  std::vector<int64_t> counts;                  // by global row
  std::vector<float> usage;
  bool operator==(const Result&) const = default;
};

// In double, each sum over tokens in their order.
struct Expected {
  explicit Expected(const Lookup& lookup)
      : out(lookup.dout.size()), dweights(lookup.weights.size()), drows(lookup.table.size()) {
    for (size_t i = 0; i < lookup.slots.size(); ++i)
      for (int64_t j = 0; j < lookup.width; ++j) {
        const size_t at_out = i / kSelections * lookup.width + j;
        const size_t at_row = lookup.slots[i] * lookup.width + j;
        out[at_out] += static_cast<double>(lookup.weights[i]) * lookup.table[at_row];
        dweights[i] += static_cast<double>(lookup.dout[at_out]) * lookup.table[at_row];
        drows[at_row] += static_cast<double>(lookup.weights[i]) * lookup.dout[at_out];
      }
  }
  Numbers out, dweights, drows;
};

// Ranks hold consecutive tokens; with three ranks and more, rank 1 has none.
std::pair<int64_t, int64_t> share(int rank, int ranks) {
  if (ranks == 1) return {0, kTokens};
  const auto cut = [&](int r) -> int64_t {
    if (r == 0) return 0;
    if (r == ranks) return kTokens;
    return ranks >= 3 && r <= 2 ? 10 : 10 + (kTokens - 10) * (r - 1) / ranks;
  };
  return {cut(rank), cut(rank + 1)};
}

void write_table(ValueTable& table, const Lookup& lookup) {
  for (int64_t local = 0; local < table.local_rows(); ++local)
    table.write_row(local,
                    {lookup.table.data() + table.global_row(local) * lookup.width, static_cast<size_t>(lookup.width)});
}

void collect_rows(ValueTable& table, Result& result) {
  Stream stream;
  const RowGradients& gradients = table.row_gradients(stream);
  EXPECT_TRUE(std::is_sorted(gradients.rows.begin(), gradients.rows.end()));
  for (int64_t u = 0; u < gradients.rows.count(); ++u) {
    std::vector<float> sum(static_cast<size_t>(gradients.d_output.size(1)));
    for (int64_t c = gradients.offsets[u]; c < gradients.offsets[u + 1]; ++c) {
      if (c > gradients.offsets[u]) {
        EXPECT_LE(gradients.sources[c - 1], gradients.sources[c]) << "order of tokens";
      }
      for (size_t j = 0; j < sum.size(); ++j)
        sum[j] += gradients.weights[c] * gradients.d_output(gradients.sources[c], j);
    }
    EXPECT_TRUE(result.drows.emplace(table.global_row(gradients.rows[u]), sum).second) << "a row twice";
  }
  for (int64_t local = 0; local < table.local_rows(); ++local) {
    result.counts[table.global_row(local)] = table.usage_counts()[local];
    result.usage[table.global_row(local)] = table.usage_weights()[local];
  }
}

// `each`: ranks of a host, of which there are several; 0: all on one host.
Result run(const Lookup& lookup, int ranks, PlacementKind placement, RowType type, int each = 0,
           const ExchangeOptions& options = {}, std::map<Purpose, double>* crossed = nullptr) {
  std::vector<Result> results(static_cast<size_t>(ranks));
  Result all{std::vector<float>(lookup.dout.size()),
             std::vector<float>(lookup.weights.size()),
             {},
             std::vector<int64_t>(lookup.slots_in_table),
             std::vector<float>(lookup.slots_in_table)};
  std::mutex mutex;
  ThreadOptions places;
  for (int rank = 0; each > 0 && rank < ranks; ++rank) places.host_of_rank.push_back(rank / each);
  const auto body = [&](Communicator& world) {
    Stream stream;
    Arena arena;
    StepContext context{stream, arena, world};
    ValueTable table({"table", lookup.slots_in_table, lookup.width, placement, type}, world, {}, 1);
    write_table(table, lookup);
    Exchange exchange(options);
    const auto [begin, end] = share(world.rank(), ranks);
    const int64_t tokens = end - begin;
    for (int64_t pass = 0; pass < lookup.passes; ++pass) {
      arena.reset();  // as between micro-batches: what is pending must survive
      const int64_t first = pass * kTokens + begin;
      Tensor<float> out(tokens * lookup.width);
      Tensor<float> dweights(tokens * kSelections);
      exchange.forward(context, table, RouteTag("test", pass, lookup.slots_in_table),
                       Matrix<const int32_t>(lookup.slots.data() + first * kSelections, tokens, kSelections),
                       Matrix<const float>(lookup.weights.data() + first * kSelections, tokens, kSelections),
                       out.view(tokens, lookup.width));
      exchange.backward(context, table,
                        Matrix<const float>(lookup.dout.data() + first * lookup.width, tokens, lookup.width),
                        dweights.view(tokens, kSelections));
      std::ranges::copy(out.values(), all.out.begin() + first * lookup.width);
      std::ranges::copy(dweights.values(), all.dweights.begin() + first * kSelections);
    }
    const std::scoped_lock lock(mutex);
    for (const Purpose purpose : {Purpose::kSelections, Purpose::kPartials, Purpose::kOutputGradients})
      if (crossed != nullptr) (*crossed)[purpose] += world.ledger()[purpose].crossed;
    collect_rows(table, all);
    table.forget_pending();
    EXPECT_EQ(table.row_gradients(stream).rows.count(), 0);
  };
  run_ranks(ranks, body, places);
  return all;
}

std::vector<float> as_floats(const Numbers& numbers) {
  return {numbers.begin(), numbers.end()};
}

constexpr PlacementKind kPlacements[] = {PlacementKind::kBlock, PlacementKind::kCyclic, PlacementKind::kHash};

TEST(Exchange, ExactInputsGiveTheSameBitsOnAnyWorld) {
  for (const int64_t width : {1, 8, 19})
    for (const RowType type : {RowType::kFloat, RowType::kBf16, RowType::kFp16}) {  // all hold small integers exactly
      const Lookup lookup(29, width, /*exact=*/true);
      const Expected expected(lookup);
      for (const auto& [ranks, each] :
           {std::pair{1, 0}, {2, 0}, {3, 0}, {4, 0}, {2, 1}, {4, 2}, {6, 3}, {6, 2}, {5, 2}})
        for (const PlacementKind placement : kPlacements) {
          SCOPED_TRACE(fmt::format("width {} type {} ranks {} on hosts of {} placement {}", width,
                                   static_cast<int>(type), ranks, each, static_cast<int>(placement)));
          const Result result = run(lookup, ranks, placement, type, each);
          EXPECT_EQ(result.out, as_floats(expected.out));
          EXPECT_EQ(result.dweights, as_floats(expected.dweights));
          std::vector<float> drows(lookup.table.size());
          for (const auto& [row, gradient] : result.drows) std::ranges::copy(gradient, drows.begin() + row * width);
          EXPECT_EQ(drows, as_floats(expected.drows));
          for (int32_t slot = 0; slot < lookup.slots_in_table; ++slot) {
            const auto reads = std::ranges::count(lookup.slots, slot);
            EXPECT_EQ(result.counts[slot], reads);
            EXPECT_EQ(result.drows.contains(slot), reads > 0);
            float weight = 0;
            for (size_t i = 0; i < lookup.slots.size(); ++i) {
              if (lookup.slots[i] != slot) continue;
              weight += lookup.weights[i];
            }
            EXPECT_EQ(result.usage[slot], weight);
          }
        }
    }
}

TEST(Exchange, RandomInputsAreCloseToDouble) {
  constexpr double kTolerance = 2e-5;
  for (const int64_t width : {5, 67, 256}) {
    const Lookup lookup(301, width, /*exact=*/false, 1);
    const Expected expected(lookup);
    for (const auto& [ranks, each] : {std::pair{1, 0}, {3, 0}, {4, 2}}) {
      const Result result = run(lookup, ranks, PlacementKind::kHash, RowType::kFloat, each);
      for (size_t i = 0; i < expected.out.size(); ++i)
        EXPECT_NEAR(result.out[i], expected.out[i], kTolerance * std::max(1.0, std::abs(expected.out[i])));
      for (size_t i = 0; i < expected.dweights.size(); ++i)
        EXPECT_NEAR(result.dweights[i], expected.dweights[i],
                    kTolerance * std::max(1.0, std::abs(expected.dweights[i])));
    }
  }
}

// Four ranks on two hosts: of a token that reads rows of both ranks of the other one, one vector crosses instead of
// two.
TEST(Exchange, AcrossHostsTravelsASumPerTokenAndHost) {
  const Lookup lookup(301, 16, /*exact=*/true, 1);
  const auto crossed = [&](const ExchangeOptions& options) {
    std::map<Purpose, double> bytes;
    run(lookup, 4, PlacementKind::kCyclic, RowType::kFloat, 2, options, &bytes);
    return bytes;
  };
  const Placement placement(PlacementKind::kCyclic, 301, 4);
  double owners = 0;  // on the other host, of all tokens
  double hosts = 0;
  for (int rank = 0; rank < 4; ++rank)
    for (int64_t token = share(rank, 4).first; token < share(rank, 4).second; ++token) {
      std::set<int> others;
      for (int64_t s = 0; s < kSelections; ++s) {
        const int owner = placement.locate(lookup.slots[token * kSelections + s]).owner;
        if (owner / 2 != rank / 2) others.insert(owner);
      }
      owners += static_cast<double>(others.size());
      hosts += others.empty() ? 0 : 1;
    }
  ASSERT_LT(hosts, owners);
  constexpr double kVector = 16 * sizeof(float);
  auto pooled = crossed({.pooled = true, .bf16 = false});
  auto by_host = crossed({});
  auto rounded = crossed({.pooled = false, .bf16 = true});
  for (const Purpose purpose : {Purpose::kPartials, Purpose::kOutputGradients}) {
    EXPECT_EQ(pooled[purpose], owners * kVector);
    EXPECT_EQ(by_host[purpose], hosts * kVector);
    EXPECT_EQ(rounded[purpose], hosts * kVector / 2);
  }
}

TEST(Exchange, GoesInTwoLegsAmongHostsOfSeveralRanksEach) {
  const auto says = [](std::vector<int> of_rank, size_t hosts, const ExchangeOptions& options = {}) {
    return to_text(options, Hosts{std::vector<std::string>(hosts, "host"), std::move(of_rank)});
  };
  EXPECT_EQ(says({0, 0, 1, 1}, 2), "a vector per token and host");
  EXPECT_EQ(says({0, 0, 1, 1}, 2, {.pooled = true, .bf16 = true}), "a vector per token and owner in BF16");
  EXPECT_EQ(says({0, 1}, 2), "a vector per token and owner") << "hosts of one rank";
  EXPECT_EQ(says({0, 1, 0, 1}, 2), "a vector per token and owner") << "ranks by turns";
  EXPECT_EQ(says({0, 0, 1}, 2), "a vector per token and owner") << "unequal hosts";
  EXPECT_EQ(says({0, 0}, 1, {.pooled = false, .bf16 = true}), "a vector per token and owner") << "one host";
}

// What one owner has for a token comes rounded to bf16, and so do the gradients that it gets: with one selection per
// token, exactly that, wherever the asker is. On one host nothing is rounded.
TEST(Exchange, Bf16RoundsVectorsOfTheLegThatCrosses) {
  Lookup lookup(301, 67, /*exact=*/false, 1);
  for (size_t i = 0; i < lookup.weights.size(); ++i) lookup.weights[i] = i % kSelections == 0 ? 1 : 0;
  const auto rounded = [](std::vector<float> numbers) {
    for (float& x : numbers) x = static_cast<float>(bf16(x));
    return numbers;
  };
  Lookup seen = lookup;  // by the owners
  seen.dout = rounded(lookup.dout);
  for (const bool pooled : {false, true}) {
    const auto on_hosts_of = [&](int each, bool narrow) {
      return run(lookup, 4, PlacementKind::kHash, RowType::kFloat, each, {pooled, narrow});
    };
    const Result exact = run(seen, 4, PlacementKind::kHash, RowType::kFloat);
    const Result actual = on_hosts_of(2, true);
    EXPECT_EQ(actual.out, rounded(exact.out));
    EXPECT_EQ(actual.dweights, exact.dweights);
    EXPECT_EQ(actual.drows.size(), exact.drows.size());
    for (const auto& [row, gradient] : exact.drows)
      for (size_t j = 0; j < gradient.size(); ++j) EXPECT_NEAR(actual.drows.at(row)[j], gradient[j], 1e-5) << row;
    EXPECT_EQ(on_hosts_of(0, true), on_hosts_of(0, false)) << "on one host";
  }
}

TEST(Exchange, RunsRepeatBitForBitOnAnyThreads) {
  for (const int64_t rows : {301, 20}) {
    const Lookup lookup(rows, 67, /*exact=*/false);
    for (const auto& [ranks, each] : {std::pair{1, 0}, {3, 0}, {4, 2}}) {
      const ThreadScope single(1);
      const Result one = run(lookup, ranks, PlacementKind::kHash, RowType::kFloat, each);
      EXPECT_EQ(one, run(lookup, ranks, PlacementKind::kHash, RowType::kFloat, each));
      const ThreadScope several(3);
      EXPECT_EQ(one, run(lookup, ranks, PlacementKind::kHash, RowType::kFloat, each));
    }
  }
}

constexpr int64_t kPairs = 9000;
constexpr int64_t kPerPair = 5;

// Both pieces are the same, so a row's contributions are its list twice.
void expect_sorted(const RowGradients& sorted, const std::vector<Selection>& selections) {
  ASSERT_EQ(sorted.weights.count(), 2 * std::ssize(selections));
  EXPECT_EQ(sorted.offsets[sorted.rows.count()], sorted.weights.count());
  for (int64_t u = 0; u < sorted.rows.count(); ++u) {
    if (u > 0) {
      ASSERT_LT(sorted.rows[u - 1], sorted.rows[u]);
    }
    ASSERT_LT(sorted.offsets[u], sorted.offsets[u + 1]);
    const int64_t half = (sorted.offsets[u + 1] - sorted.offsets[u]) / 2;
    for (int64_t c = sorted.offsets[u]; c < sorted.offsets[u + 1]; ++c) {
      const auto i = static_cast<size_t>(sorted.weights[c]);
      ASSERT_EQ(selections[i].row, sorted.rows[u]);
      ASSERT_EQ(sorted.sources[c], static_cast<int32_t>(i / kPerPair));
      ASSERT_EQ(sorted.order[c], static_cast<int32_t>(i + (c < sorted.offsets[u] + half ? 0 : selections.size())));
      if (c > sorted.offsets[u] && c != sorted.offsets[u] + half) {
        ASSERT_LT(sorted.weights[c - 1], sorted.weights[c]);
      }
    }
  }
}

// Of 5,000,000 rows a bucket has few contributions or a great many, of 1,000 each row has many.
TEST(RowGradients, LargeSortsAreStableOnAnyThreads) {
  const Random random(5, "sort test");
  for (const int64_t local_rows : {5'000'000, 70'000, 1000, 1}) {
    std::vector<Selection> selections;
    std::vector<int32_t> offsets = {0};
    for (int64_t i = 0; i < kPairs * kPerPair; ++i) {
      const int64_t row =
          i % 4 == 0 ? local_rows - 1 : random.bits(i) % (i % 2 == 0 ? std::min<int64_t>(300, local_rows) : local_rows);
      selections.push_back({static_cast<int32_t>(row), static_cast<float>(i)});
      if ((i + 1) % kPerPair == 0) offsets.push_back(static_cast<int32_t>(i + 1));
    }
    const std::vector<GradientPiece> pieces(2, {Vector<const Selection>(selections.data(), selections.size()),
                                                Vector<const int32_t>(offsets.data(), offsets.size()), 0});
    std::vector<float> d_output(kPairs * 2);
    for (const int thread_count : {1, 3}) {
      const ThreadScope scope(thread_count);
      Stream stream;
      Arena arena;
      expect_sorted(sort_by_row(stream, arena, pieces, Matrix<const float>(d_output.data(), kPairs * 2, 1), local_rows),
                    selections);
    }
  }
}

TEST(ValueTable, RowsDoNotDependOnTheWorld) {
  constexpr int64_t kSlots = 23;
  constexpr int64_t kWidth = 7;
  SelfCommunicator self;
  for (const RowType type : {RowType::kFloat, RowType::kBf16, RowType::kFp16}) {
    ValueTable whole({"t", kSlots, kWidth, PlacementKind::kHash, type}, self, {}, 3);
    for (const PlacementKind placement : kPlacements)
      run_ranks(3, [&](Communicator& world) {
        ValueTable table({"t", kSlots, kWidth, placement, type}, world, {}, 3);
        for (int64_t local = 0; local < table.local_rows(); ++local) {
          std::vector<float> mine(kWidth);
          std::vector<float> expected(kWidth);
          table.read_row(local, mine);
          whole.read_row(table.global_row(local), expected);
          EXPECT_EQ(mine, expected);
        }
      });
  }
  ValueTable other({"u", kSlots, kWidth, PlacementKind::kHash, RowType::kFloat}, self, {}, 3);
  ValueTable whole({"t", kSlots, kWidth, PlacementKind::kHash, RowType::kFloat}, self, {}, 3);
  std::vector<float> a(kWidth);
  std::vector<float> b(kWidth);
  other.read_row(0, a);
  whole.read_row(0, b);
  EXPECT_NE(a, b) << "tables of other names start otherwise";
}

TEST(ValueTable, StartsNormalWithTheRightDeviation) {
  SelfCommunicator self;
  ValueTable table({"t", 400, 100, PlacementKind::kBlock, RowType::kFloat}, self, {}, 3);
  double sum = 0;
  double squares = 0;
  std::vector<float> row(100);
  for (int64_t i = 0; i < 400; ++i) {
    table.read_row(i, row);
    for (const float x : row) {
      sum += x;
      squares += static_cast<double>(x) * x;
    }
  }
  EXPECT_NEAR(sum / 40000, 0, 0.1 * 4 / 200);
  EXPECT_NEAR(std::sqrt(squares / 40000), 0.1, 0.002);
}

}  // namespace
}  // namespace pkmesh
