// SPDX-License-Identifier: Apache-2.0
// All-reduces over MPI that go on while their rank computes, and the halves of such: a rank gets the sums of what it
// looks after, and what it made of them becomes that of all. MPI moves nothing but inside its calls. So what can be
// done at once is done whenever this process ends an op, or waits: for MPI by wait_for() or wait(), for other ranks'
// memory with progress_all().
//
// An operation is cut into pieces, of which a few are under way at a time: enough to keep a network busy until the next
// op, and few enough for what the rank waits for meanwhile, which queues up behind them. A piece goes through four
// stages, with one message to and from each of a stage's peers. With h hosts of l ranks each, in parts of a piece:
//
//   sum within hosts     a rank gets its share from all ranks of its host, and adds up        (l-1) / l
//   sum across hosts     ranks of one place on their hosts cut that again, and add up         (h-1) / h / l
//   gather across hosts  what was cut for the second time comes together                      (h-1) / h / l
//   gather within hosts  and what was cut for the first time                                  (l-1) / l
//
// So a host sends 2 (h-1) / h, less than which no all-reduce does. Elements are added in the order of the ranks of a
// host, and these sums in the order of the hosts, by one rank each: all ranks get the same bits, and the same again in
// the next run. Where hosts have not as many ranks each, or not one after the other, every rank counts as a host.
//
// So a rank looks after one part of every piece, that which it adds up across hosts: its shares() of an operation.
//
// With Wire::kBf16 what goes across is rounded: hosts' sums, but for that of the rank that adds, and the whole sums, on
// all ranks alike. They add up in fp32. Which host's stay exact depends on the cut. Of shares that are gathered it is
// their changes that go across, rounded by whom they belong to.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "runtime/bf16.h"

namespace pkmesh {

class MpiSums {
 public:
  struct Options {
    int64_t bytes_at_once;  // of the pieces under way
    int64_t largest_count;  // of the elements of a message
  };
  // All ranks of `world` make one, with the same options. `spent` hears of the seconds between ops.
  MpiSums(MPI_Comm world, int rank, const Hosts& hosts, const Options& options, std::function<void(double)> spent);
  ~MpiSums();
  MpiSums(const MpiSums&) = delete;
  MpiSums& operator=(const MpiSums&) = delete;

  // Every start_...() returns the operation's number. Until done(number) its memory is not to be touched. All ranks
  // start the same operations in the same order.
  //
  // The elements of data, each of `unit` bytes, become the reduction over ranks.
  int64_t start(std::span<std::byte> data, int64_t unit, MPI_Datatype type, MPI_Op reduction, Wire wire);
  // This rank's shares of data become the sums; what else stands in data is then undefined.
  int64_t start_sum_shares(std::span<float> data, Wire wire);
  // Every rank's shares become everyone's. With Wire::kBf16 what goes across are `changes` of this rank's shares, one
  // after the other, which others add to what they have.
  int64_t start_gather_shares(std::span<float> data, Wire wire, std::span<const bf16> changes = {});
  // What a rank looks after of so many floats: ascending.
  std::vector<Share> shares(int64_t count, int rank) const;
  bool done(int64_t operation) const;
  void wait(int64_t operation);  // for a while only, if it is an exception that leaves

  // All of this process that are under way do what they can at once.
  static void progress_all();

  // What this rank sends to other hosts for an operation of so many bytes.
  double crossing(int64_t bytes, Wire wire) const;
  // Most memory that pieces take, with so many ranks, of operations of so many bytes each.
  static int64_t memory(int64_t ranks, int64_t bytes_at_once, int64_t bytes);

 private:
  friend class SumsUnderWay;

  enum class Stage { kSumWithin, kSumAcross, kGatherAcross, kGatherWithin, kOver };
  struct Operation {
    std::span<std::byte> data;
    int64_t unit;
    MPI_Datatype type;
    MPI_Op reduction;
    Wire wire;
    Stage first = Stage::kSumWithin;
    Stage end = Stage::kOver;            // the one behind its last
    std::span<const bf16> changes = {};  // of this rank's shares that are in no piece yet
    int64_t taken = 0;                   // elements that are in pieces by now
    int64_t pieces_left = 0;
    int64_t count() const { return std::ssize(data) / unit; }
    bool gathers_changes() const { return first == Stage::kGatherAcross && wire == Wire::kBf16; }
  };
  // Ranks that share a piece, this one among them.
  struct Team {
    std::vector<int> ranks;
    int place = 0;  // of this rank
    int size() const { return static_cast<int>(ranks.size()); }
    Share share(Share whole, int peer) const;
  };
  struct Piece {
    int64_t number = 0;  // of all pieces: makes the messages' tags
    int64_t operation = 0;
    Share elements;                 // of the operation's
    std::span<const bf16> changes;  // of this rank's share
    Stage stage = Stage::kOver;
    std::vector<MPI_Request> requests;  // of this stage
    std::vector<std::byte> parts;       // of a sum, one for each place in the team; this rank's own stays where it is
    std::vector<bf16> rounded;          // the stage's elements, where they are in bf16
  };
  static int64_t piece_bytes(int64_t ranks, int64_t bytes_at_once);
  static int64_t pieces_at_once(int64_t ranks, int64_t bytes_at_once);
  int64_t piece_count(int64_t unit) const;
  Operation& operation(int64_t number) { return operations_[static_cast<size_t>(number - first_)]; }

  int64_t start(Operation operation);
  Share share(Share piece, int rank) const;
  void progress();
  bool take(Piece& piece);     // the next of the first operation that has one; false: none has
  bool advance(Piece& piece);  // by the stages that are over; false: none is
  void post(Piece& piece);
  void finish(Piece& piece);
  void add_parts(Piece& piece);
  void add_rounded_parts(Piece& piece);
  std::byte* part(Piece& piece, int peer);
  static bool sums(Stage stage) { return stage == Stage::kSumWithin || stage == Stage::kSumAcross; }
  const Team& team(Stage stage) const;
  Share stage_elements(const Piece& piece) const;  // that its team shares
  std::span<float> floats(const Piece& piece, Share share);
  bool rounds(const Piece& piece);  // whether its stage's messages are in bf16
  void take_rounded(Piece& piece);
  int tag(const Piece& piece) const;

  const MPI_Comm world_;
  const int rank_;
  const int64_t piece_bytes_;
  const int64_t largest_count_;
  const std::function<void(double)> spent_;
  Team within_, across_;
  double crossing_;                   // bytes for each byte of an operation
  std::deque<Operation> operations_;  // under way: from number first_ on
  int64_t first_ = 0;
  int64_t pieces_ = 0;  // taken so far
  std::vector<Piece> pieces_under_way_;
  bool failed_ = false;  // MPI did, or nobody waits any more: the job is ending
};

// MPI_Wait in which sums that are under way go on: those of this rank on which others wait may be among them.
int wait_for(MPI_Request& request, MPI_Status* status = MPI_STATUS_IGNORE);

}  // namespace pkmesh
