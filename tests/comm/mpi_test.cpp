// SPDX-License-Identifier: Apache-2.0
// The contract over MPI: with the limits of a real run, with limits so low that everything goes in pieces, and as if the
// ranks were on several hosts (two ranks on each, where they come out even; one).
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
          {"MpiInPieces", over_mpi({.largest_count = 61, .reduce_piece_bytes = 148, .watch = minute})},
          {"MpiHostsOfTwo", over_mpi({.bytes_at_once = 640, .ranks_each = 2, .watch = minute})},
          {"MpiHostsOfOne", over_mpi({.bytes_at_once = 640, .ranks_each = 1, .watch = minute})}};
}

}  // namespace pkmesh
