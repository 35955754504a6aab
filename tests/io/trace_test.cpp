// SPDX-License-Identifier: Apache-2.0
#include "io/trace.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "comm/self.h"
#include "comm/thread.h"
#include "io/file.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

using nlohmann::json;

class TraceTest : public testing::Test {
 protected:
  TraceTest() : folder_(testing::TempDir() + "pkmesh_trace_" + std::to_string(getpid())) {}
  ~TraceTest() override { remove_quietly(folder_); }
  static json parse(const std::string& path) { return json::parse(read_text(path)); }
  const std::string folder_;
};

class Listening {
 public:
  explicit Listening(RangeObserver* observer) : former_(observe_ranges(observer)) {}
  ~Listening() { observe_ranges(former_); }

 private:
  RangeObserver* former_;
};

void one_step() {
  const Range outer("step");
  for (int i = 0; i < 2; ++i) const Range inner("layer \"7\"");
}

// The complete events of one rank, by name, in the order they were kept.
std::vector<json> ranges(const json& trace, int rank, const std::string& name) {
  std::vector<json> found;
  for (const json& event : trace["traceEvents"])
    if (event["ph"] == "X" && event["pid"] == rank && event["name"] == name) found.push_back(event);
  return found;
}

TEST_F(TraceTest, RangesAreNestedAndOnOneTimeAxis) {
  run_ranks(3,
            [&](Communicator& world) {
              Trace trace(world);
              {
                const Listening listening(&trace);
                world.barrier();
                one_step();
              }
              const std::string path = write_traces(world, trace, folder_);
              EXPECT_EQ(path, folder_ + "/trace.json");
            },
            {{0, 0, 1}});
  const json all = parse(folder_ + "/trace.json");
  size_t events = 0;
  for (int rank = 0; rank < 3; ++rank) {
    const json own = parse(folder_ + "/rank0000" + std::to_string(rank) + ".json");
    events += own["traceEvents"].size();
    const auto outer = ranges(all, rank, "step");
    const auto inner = ranges(all, rank, "layer \"7\"");
    ASSERT_EQ(outer.size(), 1U);
    ASSERT_EQ(inner.size(), 2U);
    ASSERT_EQ(ranges(all, rank, "control: barrier").size(), 1U);
    const double begin = outer[0]["ts"];
    const double end = begin + outer[0]["dur"].get<double>();
    for (const json& range : inner) {
      EXPECT_GE(range["ts"].get<double>(), begin);
      EXPECT_LE(range["ts"].get<double>() + range["dur"].get<double>(), end + 1e-6);
    }
    EXPECT_GE(inner[1]["ts"].get<double>(), inner[0]["ts"].get<double>() + inner[0]["dur"].get<double>());
    EXPECT_LT(begin, 60e6) << "time zero is when the trace began";
    EXPECT_GT(begin, -10e6);
    const json& process = own["traceEvents"][0];
    EXPECT_EQ(process["name"], "process_name");
    EXPECT_EQ(process["args"]["name"], "rank " + std::to_string(rank) + (rank < 2 ? " (host0)" : " (host1)"));
  }
  EXPECT_EQ(all["traceEvents"].size(), events);
}

TEST_F(TraceTest, RanksOfOneHostAgreeOnWhatCameFirst) {
  run_ranks(2, [&](Communicator& world) {
    Trace trace(world);
    const Listening listening(&trace);
    if (world.rank() == 0) const Range range("first");
    world.barrier();
    if (world.rank() == 1) const Range range("second");
    write_traces(world, trace, folder_);
  });
  const json all = parse(folder_ + "/trace.json");
  const json first = ranges(all, 0, "first").at(0);
  EXPECT_LE(first["ts"].get<double>() + first["dur"].get<double>(), ranges(all, 1, "second").at(0)["ts"].get<double>());
}

TEST_F(TraceTest, FullMemoryDropsLaterRangesAndSaysSo) {
  SelfCommunicator world;
  Trace trace(world, 4);
  {
    const Listening listening(&trace);
    for (int i = 0; i < 3; ++i) one_step();
  }
  EXPECT_EQ(trace.dropped(), 5);
  const auto totals = trace.totals();
  ASSERT_EQ(totals.size(), 2U);
  EXPECT_EQ(totals[0].name, "step") << "the longest first";
  EXPECT_EQ(totals[0].count, 3);
  EXPECT_EQ(totals[1].count, 6);
  EXPECT_GE(totals[0].ms, totals[1].ms);
  make_folder(folder_);
  trace.write(folder_ + "/full.json");
  const json full = parse(folder_ + "/full.json");
  EXPECT_EQ(ranges(full, 0, "step").size(), 1U);
  EXPECT_EQ(full["traceEvents"][2]["args"]["labels"], "5 later ranges dropped");
}

TEST_F(TraceTest, TableIsPerStepAndBounded) {
  const std::vector<RangeTotal> totals = {{"step", 4, 80}, {"attention forward", 8, 20}, {"gelu", 4, 1}};
  const std::string table = to_table(totals, 4, 0.020, 2);
  EXPECT_NE(table.find("step                                            1.0       20.000  100.0%"), std::string::npos)
      << table;
  EXPECT_NE(table.find("attention forward                               2.0        5.000   25.0%"), std::string::npos)
      << table;
  EXPECT_EQ(table.find("gelu"), std::string::npos) << "two lines only";
}

TEST_F(TraceTest, AnUnwritableFolderIsOneErrorOnAllRanks) {
  make_folder(folder_);
  std::ofstream(folder_ + "/file") << "in the way";
  EXPECT_THROW(run_ranks(2,
                         [&](Communicator& world) {
                           const Trace trace(world);
                           EXPECT_THROW(write_traces(world, trace, folder_ + "/file"), UserError);
                           write_traces(world, trace, folder_ + "/file");
                         }),
               UserError);
}

}  // namespace
}  // namespace pkmesh
