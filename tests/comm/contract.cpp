// SPDX-License-Identifier: Apache-2.0
#include "contract.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

#include "runtime/check.h"
#include "runtime/random.h"
#include "runtime/range.h"

namespace pkmesh {

INSTANTIATE_TEST_SUITE_P(Comm, ContractTest, testing::ValuesIn(contract_worlds()), testing::PrintToStringParamName());

namespace {

constexpr Purpose kPurpose = Purpose::kPartials;
const std::vector<int64_t> kCounts = {0, 1, 2, 7, 64, 1001};

// What memory selections look like: a row and its weight.
struct Selection {
  int32_t row;
  float weight;
  friend bool operator==(const Selection&, const Selection&) = default;
};

// What rank `from` sends to rank `to`: a number of elements that is often zero, and never symmetric.
int64_t block_size(int from, int to) {
  return (from * 5 + to * 3) % 4 * 9;
}
Selection selection(int from, int to, int64_t i) {
  return {static_cast<int32_t>(from * 10000 + to * 1000 + i), whole<float>(from + to, i)};
}

// Both sides of an all-to-all-v of selections, with a sentinel after the last element that comes in.
struct Exchange {
  explicit Exchange(const Communicator& world) {
    const int me = world.rank();
    for (int peer = 0; peer < world.size(); ++peer) {
      in_counts.push_back(block_size(me, peer));
      out_counts.push_back(block_size(peer, me));
      for (int64_t i = 0; i < in_counts.back(); ++i) in.push_back(selection(me, peer, i));
      for (int64_t i = 0; i < out_counts.back(); ++i) expected.push_back(selection(peer, me, i));
    }
    out.assign(expected.size() + 1, kSentinel);
    expected.push_back(kSentinel);
  }
  std::span<Selection> incoming() { return std::span(out).first(out.size() - 1); }
  static constexpr Selection kSentinel{-7, -7.0F};
  std::vector<int64_t> in_counts, out_counts;
  std::vector<Selection> in, out, expected;
};

template <class T>
void check_reductions(Communicator& world) {
  for (const int64_t count : kCounts)
    for (const Reduction reduction : {Reduction::kSum, Reduction::kMax, Reduction::kMin}) {
      const auto expected = expected_reduction<T>(world.size(), count, reduction);
      auto data = numbers<T>(world.rank(), count);
      auto started = data;
      auto pending = world.all_reduce_async(std::span(started), reduction, kPurpose);
      world.all_reduce(std::span(data), reduction, kPurpose);
      EXPECT_EQ(data, expected) << "all_reduce of " << count;
      pending.wait();
      EXPECT_EQ(started, expected) << "all_reduce_async of " << count;
    }
}

TEST_P(ContractTest, ReducesEveryType) {
  on_ranks([](Communicator& world) {
    check_reductions<float>(world);
    check_reductions<double>(world);
    check_reductions<int32_t>(world);
    check_reductions<int64_t>(world);
  });
}

TEST_P(ContractTest, InexactSumsHaveTheSameBitsOnEveryRankAndAgain) {
  on_ranks([](Communicator& world) {
    for (const int64_t count : {1, 5, 333, 20000}) {
      std::vector<float> mine(static_cast<size_t>(count));
      const Random random(17, "inexact", world.rank());
      for (size_t i = 0; i < mine.size(); ++i) mine[i] = random.uniform(i) - 0.5F;
      const auto check = [&](const char* what, const auto& reduce) {
        auto first = mine;
        auto second = mine;
        reduce(std::span(first));
        reduce(std::span(second));
        EXPECT_EQ(std::memcmp(first.data(), second.data(), first.size() * sizeof(float)), 0) << what << ", again";
        std::vector<float> all(first.size() * static_cast<size_t>(world.size()));
        world.all_gather(first, std::span(all), kPurpose);
        for (int r = 0; r < world.size(); ++r)
          EXPECT_EQ(std::memcmp(all.data() + r * count, first.data(), first.size() * sizeof(float)), 0)
              << what << ", rank " << r;
      };
      check("all_reduce", [&](std::span<float> data) { world.all_reduce(data, Reduction::kSum, kPurpose); });
      check("all_reduce_async",
            [&](std::span<float> data) { world.all_reduce_async(data, Reduction::kSum, kPurpose).wait(); });
    }
  });
}

TEST_P(ContractTest, GathersInRankOrder) {
  on_ranks([](Communicator& world) {
    for (const int64_t count : kCounts) {
      const auto in = numbers<float>(world.rank(), count);
      std::vector<float> out(static_cast<size_t>(count * world.size()) + 1, 99);
      world.all_gather(in, std::span(out).first(out.size() - 1), kPurpose);
      std::vector<float> expected;
      for (int r = 0; r < world.size(); ++r)
        for (int64_t i = 0; i < count; ++i) expected.push_back(whole<float>(r, i));
      expected.push_back(99);
      EXPECT_EQ(out, expected) << count;
    }
  });
}

TEST_P(ContractTest, AllToAllTransposesBlocks) {
  on_ranks([](Communicator& world) {
    for (const int64_t count : kCounts) {
      std::vector<Selection> in;
      std::vector<Selection> expected;
      for (int peer = 0; peer < world.size(); ++peer)
        for (int64_t i = 0; i < count; ++i) {
          in.push_back(selection(world.rank(), peer, i));
          expected.push_back(selection(peer, world.rank(), i));
        }
      std::vector<Selection> out(in.size() + 1, Exchange::kSentinel);
      expected.push_back(Exchange::kSentinel);
      world.all_to_all(std::span<const Selection>(in), std::span(out).first(in.size()), kPurpose);
      EXPECT_EQ(out, expected) << count;
    }
  });
}

TEST_P(ContractTest, AllToAllVTakesUnevenAndEmptyBlocks) {
  on_ranks([](Communicator& world) {
    Exchange exchange(world);
    world.all_to_all_v(exchange.in, exchange.in_counts, exchange.incoming(), exchange.out_counts, kPurpose);
    EXPECT_EQ(exchange.out, exchange.expected);

    const std::vector<int64_t> none(static_cast<size_t>(world.size()), 0);
    world.all_to_all_v(std::span<const float>(), none, std::span<float>(), none, kPurpose);
  });
}

TEST_P(ContractTest, BroadcastsFromEveryRoot) {
  on_ranks([](Communicator& world) {
    for (int root = 0; root < world.size(); ++root)
      for (const int64_t count : kCounts) {
        auto data = numbers<double>(world.rank(), count);
        world.broadcast(std::span(data), root, kPurpose);
        EXPECT_EQ(data, numbers<double>(root, count));
      }
  });
}

TEST_P(ContractTest, TwoPendingAtOnceInAnyOrder) {
  on_ranks([](Communicator& world) {
    auto sums = numbers<float>(world.rank(), 501);
    Exchange first(world);
    Exchange second(world);
    for (Selection& s : second.in) s.weight += 1;
    for (size_t i = 0; i + 1 < second.expected.size(); ++i) second.expected[i].weight += 1;
    auto pending_sums = world.all_reduce_async(std::span(sums), Reduction::kSum, Purpose::kDense);
    auto pending_first =
        world.all_to_all_v_async(first.in, first.in_counts, first.incoming(), first.out_counts, kPurpose);
    auto pending_second =
        world.all_to_all_v_async(second.in, second.in_counts, second.incoming(), second.out_counts, kPurpose);
    world.barrier();  // a blocking collective in between
    if (world.rank() % 2 == 0) {
      pending_second.wait();
      pending_sums.wait();
      pending_first.wait();
    } else {
      pending_first.wait();
      pending_second.wait();
      pending_sums.wait();
    }
    EXPECT_EQ(sums, expected_reduction<float>(world.size(), 501, Reduction::kSum));
    EXPECT_EQ(first.out, first.expected);
    EXPECT_EQ(second.out, second.expected);
    EXPECT_FALSE(pending_sums.under_way());
    pending_sums.wait();  // a second wait is nothing
  });
}

TEST_P(ContractTest, PendingWaitsWhenItGoesAndWhenItIsReplaced) {
  on_ranks([](Communicator& world) {
    auto a = numbers<int64_t>(world.rank(), 33);
    auto b = a;
    {
      auto pending = world.all_reduce_async(std::span(a), Reduction::kMax, kPurpose);
      pending = world.all_reduce_async(std::span(b), Reduction::kMin, kPurpose);
      EXPECT_EQ(a, expected_reduction<int64_t>(world.size(), 33, Reduction::kMax));
    }
    EXPECT_EQ(b, expected_reduction<int64_t>(world.size(), 33, Reduction::kMin));
  });
}

TEST_P(ContractTest, LedgerCountsAsNcclTestsDoes) {
  on_ranks([](Communicator& world) {
    const auto n = static_cast<int64_t>(world.size());
    const double others = static_cast<double>(n - 1) / static_cast<double>(n);
    std::vector<float> block(24);
    std::vector<float> all(static_cast<size_t>(24 * n));
    const auto cost = [&](auto collective) {
      const Ledger before = world.ledger();
      collective();
      const Ledger spent = world.ledger() - before;
      EXPECT_EQ(spent.total().calls, 1);
      EXPECT_EQ(spent[Purpose::kDense].calls, 1);
      EXPECT_GE(spent[Purpose::kDense].seconds, 0);
      return spent[Purpose::kDense];
    };
    const auto reduced = cost([&] { world.all_reduce(std::span(block), Reduction::kSum, Purpose::kDense); });
    EXPECT_EQ(reduced.bytes, 96);
    EXPECT_DOUBLE_EQ(reduced.bus_bytes, 96 * 2 * others);
    const auto async = cost([&] { world.all_reduce_async(std::span(block), Reduction::kSum, Purpose::kDense).wait(); });
    EXPECT_EQ(async.bytes, 96);
    const auto summed = cost([&] { world.sum_shares_async(all, Wire::kExact, Purpose::kDense).wait(); });
    EXPECT_EQ(summed.bytes, 96 * n);
    EXPECT_DOUBLE_EQ(summed.bus_bytes, static_cast<double>(96 * n) * others * (world.shares_work() ? 1 : 2));
    if (world.shares_work()) {
      const auto gathered = cost([&] { world.gather_shares_async(all, Purpose::kDense).wait(); });
      EXPECT_EQ(gathered.bytes, 96 * n);
      EXPECT_DOUBLE_EQ(gathered.bus_bytes, static_cast<double>(96 * n) * others);
      EXPECT_DOUBLE_EQ(gathered.crossed, summed.crossed);
    }
    EXPECT_EQ(cost([&] { world.all_gather(block, std::span(all), Purpose::kDense); }).bytes, 96 * n);
    auto other = all;
    const auto transposed = cost([&] { world.all_to_all(all, std::span(other), Purpose::kDense); });
    EXPECT_EQ(transposed.bytes, 96 * n);
    EXPECT_DOUBLE_EQ(transposed.bus_bytes, static_cast<double>(96 * n) * others);
    const auto told = cost([&] { world.broadcast(std::span(block), 0, Purpose::kDense); });
    EXPECT_EQ(told.bytes, 96);
    EXPECT_DOUBLE_EQ(told.bus_bytes, n > 1 ? 96 : 0);
    Exchange exchange(world);
    const auto exchanged = cost([&] {
      world.all_to_all_v(exchange.in, exchange.in_counts, exchange.incoming(), exchange.out_counts, Purpose::kDense);
    });
    EXPECT_EQ(exchanged.bytes, static_cast<int64_t>(exchange.in.size() * sizeof(Selection)));
    int64_t crossing = 0;
    for (int r = 0; r < world.size(); ++r)
      if (world.hosts().of_rank[static_cast<size_t>(r)] != world.hosts().of_rank[static_cast<size_t>(world.rank())])
        crossing += exchange.in_counts[static_cast<size_t>(r)] * static_cast<int64_t>(sizeof(Selection));
    EXPECT_DOUBLE_EQ(exchanged.crossed, static_cast<double>(crossing));
    const int64_t control = world.ledger()[Purpose::kControl].calls;
    world.barrier();
    EXPECT_EQ(world.ledger()[Purpose::kControl].calls, control + 1);
  });
}

TEST_P(ContractTest, ReportsMeansAndImbalance) {
  on_ranks([](Communicator& world) {
    Ledger ledger;
    ledger.add(Purpose::kPartials, {4, 1000 * (world.rank() + 1), 500, 250, 0.002});
    ledger.add(Purpose::kGate, {2, 8, 8, 0, 0.002});
    const auto report = collect(world, ledger, 2, 0.080);
    const double n = world.size();
    EXPECT_EQ(report.lines.size(), 2U);
    if (report.lines.size() != 2) return;
    EXPECT_EQ(report.ranks, world.size());
    EXPECT_EQ(report.lines[0].purpose, "partials");
    EXPECT_DOUBLE_EQ(report.lines[0].calls, 2);
    EXPECT_DOUBLE_EQ(report.lines[0].bytes, 1000 * (n + 1) / 2 / 2);
    EXPECT_DOUBLE_EQ(report.lines[0].crossed_bytes, 125);
    EXPECT_NEAR(report.lines[0].wait_ms, 1.0, 1e-9);
    EXPECT_NEAR(report.lines[0].share, 0.001 / 0.040, 1e-9);
    EXPECT_NEAR(report.lines[0].algbw, 500 * (n + 1) / 0.002, 1e-3);
    EXPECT_NEAR(report.lines[0].busbw, 500 / 0.002, 1e-3);
    EXPECT_NEAR(report.lines[0].bytes_imbalance, n / ((n + 1) / 2), 1e-9);
    EXPECT_NEAR(report.lines[1].wait_imbalance, 1, 1e-9);
    EXPECT_DOUBLE_EQ(report.total.calls, 3);
    EXPECT_NEAR(report.total.wait_ms, 2.0, 1e-9);

    const std::string table = to_table(report);
    EXPECT_NE(table.find("partials"), std::string::npos);
    EXPECT_NE(table.find("total"), std::string::npos);
    EXPECT_EQ(table.find("selections"), std::string::npos) << "unused purposes take no line";
    const auto json = to_json(report);
    EXPECT_EQ(json["purposes"]["gate"]["calls"], 1.0);
    EXPECT_EQ(nlohmann::json::parse(json.dump()), json);
  });
}

TEST_P(ContractTest, KnowsItsHosts) {
  on_ranks([](Communicator& world) {
    const Hosts& hosts = world.hosts();
    EXPECT_EQ(static_cast<int>(hosts.of_rank.size()), world.size());
    EXPECT_EQ(*std::max_element(hosts.of_rank.begin(), hosts.of_rank.end()) + 1, hosts.count());
    for (const std::string& name : hosts.names) EXPECT_FALSE(name.empty());
  });
}

TEST_P(ContractTest, OpensARangePerCollective) {
  struct Names : RangeObserver {
    void on_range(std::string_view name, Clock::time_point, Clock::time_point) override { seen.emplace_back(name); }
    std::vector<std::string> seen;
  };
  on_ranks([](Communicator& world) {
    Names names;
    RangeObserver* const former = observe_ranges(&names);
    std::vector<float> data(3);
    world.all_reduce(std::span(data), Reduction::kSum, Purpose::kBatchNorm);
    world.barrier();
    observe_ranges(former);
    names.seen.erase(std::unique(names.seen.begin(), names.seen.end()), names.seen.end());  // one may stand on another
    EXPECT_EQ(names.seen, (std::vector<std::string>{"batch norm: all_reduce", "control: barrier"}));
  });
}

TEST_P(ContractTest, RefusesSizesThatDoNotFit) {
  on_ranks([](Communicator& world) {
    std::vector<float> data(static_cast<size_t>(2 * world.size() + 1));
    std::vector<float> out(2);
    EXPECT_THROW(world.all_gather(out, std::span(data), kPurpose), InternalError);
    EXPECT_THROW(world.broadcast(std::span(data), world.size(), kPurpose), InternalError);
    const std::vector<int64_t> counts(static_cast<size_t>(world.size()), 1);
    EXPECT_THROW(world.all_to_all_v(data, counts, std::span(data), counts, kPurpose), InternalError);
    EXPECT_THROW(world.all_to_all_v(out, std::vector<int64_t>{}, std::span(out), counts, kPurpose), InternalError);
    world.barrier();  // and is as good as before
  });
}

TEST_P(ContractTest, LastsThroughManyCalls) {
  on_ranks([](Communicator& world) {
    Exchange exchange(world);
    for (int step = 0; step < 200; ++step) {
      std::vector<int64_t> sum = {step, world.rank()};
      auto pending = world.all_reduce_async(std::span(sum), Reduction::kSum, Purpose::kGate);
      std::fill(exchange.out.begin(), exchange.out.end(), Exchange::kSentinel);
      world.all_to_all_v(exchange.in, exchange.in_counts, exchange.incoming(), exchange.out_counts, kPurpose);
      pending.wait();
      const int64_t n = world.size();
      if (exchange.out != exchange.expected || sum != std::vector<int64_t>{step * n, n * (n - 1) / 2}) {
        ADD_FAILURE() << "wrong in step " << step;
        world.abort(1);
      }
    }
  });
}

}  // namespace
}  // namespace pkmesh
