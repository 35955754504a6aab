// SPDX-License-Identifier: Apache-2.0
// The contract over MPI: with the limits of a real run, and with limits so low that everything goes in pieces.
#include "contract.h"
#include "mpi_main.h"

namespace pkmesh {

std::vector<ContractWorld> contract_worlds() {
  const auto minute = std::chrono::minutes(1);
  const auto over_mpi = [](const MpiOptions& options) {
    return [options](const RankBody& body) {
      const auto world = test_session().world(options);
      body(*world);
    };
  };
  return {{"Mpi", over_mpi({.watch = minute})},
          {"MpiInPieces", over_mpi({.largest_count = 61, .reduce_piece_bytes = 148, .watch = minute})}};
}

}  // namespace pkmesh
