// SPDX-License-Identifier: Apache-2.0
// The ledger: what communication cost this rank, per purpose. Every collective of a Communicator is entered here by the
// communicator itself, so nothing can travel uncounted.
//
// Bytes follow nccl-tests (doc/PERFORMANCE.md): S is the size of the buffer for all-reduce and broadcast, the whole
// (size * n) side for reduce-scatter and all-gather, and what this rank hands in for all-to-all(-v), its own block
// included. algbw = S / time. busbw = algbw * factor, with n ranks: 2(n-1)/n for all-reduce, 1 for broadcast, (n-1)/n
// for the others. As one purpose may use several collectives, S * factor is summed call by call.
//
// Bytes across hosts: exact for all-to-all(-v), and for shares and all-reduces that are only started where the kind
// makes them itself (Mpi, HostStaged). For the others the library's algorithm is not ours to know, so they are modelled
// as a ring in rank order: a rank sends S * factor to rank + 1 (broadcast: S along the chain from the root), and it
// crosses if that rank lives on another host.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace pkmesh {

class Communicator;

enum class Purpose {
  kSelections,       // memory: (row, weight) to owners
  kPartials,         // memory: pooled sums back
  kOutputGradients,  // memory: dOut to owners
  kWeightGradients,  // memory: scalars back
  kDense,            // dense gradients
  kParameters,       // dense: what ranks made of them
  kInputRows,        // dense: the token embeddings that inputs read, and their gradients
  kBatchNorm,        // query statistics
  kGate,             // finite? clipping norm; before an update
  kControl,          // everything else: set-up, evaluation, checkpoints, barriers
};
inline constexpr int kPurposes = 10;
const char* to_string(Purpose purpose);  // "selections", "output gradients", ...

struct LedgerEntry {
  int64_t calls = 0;
  int64_t bytes = 0;     // S of this rank
  double bus_bytes = 0;  // S * factor
  double crossed = 0;    // bytes that left this rank's host
  double seconds = 0;    // this rank spent inside calls and waits, and on what goes on between ops

  LedgerEntry& operator+=(const LedgerEntry& other);
  LedgerEntry& operator-=(const LedgerEntry& other);
};

// A value: keep a copy as a snapshot, subtract it later for a step's or a window's share.
class Ledger {
 public:
  void add(Purpose purpose, const LedgerEntry& entry) { entries_[static_cast<size_t>(purpose)] += entry; }
  const LedgerEntry& operator[](Purpose purpose) const { return entries_[static_cast<size_t>(purpose)]; }
  LedgerEntry total() const;
  Ledger& operator+=(const Ledger& other);
  friend Ledger operator-(Ledger later, const Ledger& earlier);

 private:
  std::array<LedgerEntry, kPurposes> entries_{};
};

// One line of the report. Bytes, milliseconds and bandwidths are means over ranks, per step.
struct CommunicationLine {
  std::string purpose;
  double calls = 0;
  double bytes = 0;
  double crossed_bytes = 0;
  double wait_ms = 0;
  double share = 0;            // of the step's time, 0..1
  double algbw = 0;            // bytes/s; 0 where no time was spent
  double busbw = 0;            // bytes/s
  double bytes_imbalance = 1;  // greatest over mean of the ranks
  double wait_imbalance = 1;
};

struct CommunicationReport {
  int ranks = 1;
  int64_t hosts = 1;
  int64_t steps = 0;
  double step_seconds = 0;               // of one step, mean over ranks
  std::vector<CommunicationLine> lines;  // purposes that were used, in order
  CommunicationLine total;
};

// Collective: every rank passes its ledger (usually a difference) over `steps` steps that took step_seconds in all.
// The gathering itself is entered in the communicator's ledger under kControl. The same report on every rank.
CommunicationReport collect(Communicator& communicator, const Ledger& ledger, int64_t steps, double step_seconds);

std::string to_table(const CommunicationReport& report);
nlohmann::json to_json(const CommunicationReport& report);

}  // namespace pkmesh
