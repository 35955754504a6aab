// SPDX-License-Identifier: Apache-2.0
// `pkmesh bench`: measures this machine, and the program against what the machine could do.
#include "launcher/commands.h"

namespace pkmesh {

int bench_command(Communicator&, const BenchArguments&) { return 0; }

}  // namespace pkmesh
