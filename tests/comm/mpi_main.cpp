// SPDX-License-Identifier: Apache-2.0
#include "mpi_main.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <sstream>

namespace pkmesh {
namespace {

MpiSession* g_session = nullptr;

class FailuresOnly : public testing::EmptyTestEventListener {
 public:
  explicit FailuresOnly(int rank) : rank_(rank) {}
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::ostringstream line;
    line << "[rank " << rank_ << "] " << (result.file_name() == nullptr ? "" : result.file_name()) << ":"
         << result.line_number() << ": " << result.summary() << "\n";
    std::cerr << line.str();
  }

 private:
  int rank_;
};

int run(int argc, char** argv) {
  MpiSession session(&argc, &argv);
  g_session = &session;
  testing::InitGoogleTest(&argc, argv);
  GTEST_FLAG_SET(catch_exceptions, false);
  const auto world = session.world();
  const char* wanted = std::getenv("PKMESH_TEST_RANKS");
  if (wanted != nullptr && std::atoi(wanted) != world->size()) {
    std::cerr << "this test needs " << wanted << " ranks and got " << world->size() << "\n";
    return 1;
  }
  if (world->rank() > 0) {
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailuresOnly(world->rank()));
  }
  return RUN_ALL_TESTS();
}

}  // namespace

MpiSession& test_session() {
  return *g_session;
}

}  // namespace pkmesh

int main(int argc, char** argv) {
  return pkmesh::run(argc, argv);
}
