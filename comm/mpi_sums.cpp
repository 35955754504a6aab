// SPDX-License-Identifier: Apache-2.0
#include "comm/mpi_sums.h"

#include <algorithm>
#include <utility>

#include "comm/mpi_group.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

constexpr int64_t kPieces = 8;     // at once, of a small world
constexpr int64_t kMessages = 64;  // of a host's share, that bytes_at_once make at least: none is very small

void narrow(std::span<const float> from, bf16* to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] = bf16(from[i]);
}

void widen(const bf16* from, std::span<float> to) {
  for (size_t i = 0; i < to.size(); ++i) to[i] = static_cast<float>(from[i]);
}

}  // namespace

// In a large world pieces grow, so that messages do not shrink, and fewer are under way.
int64_t MpiSums::piece_bytes(int64_t ranks, int64_t bytes_at_once) {
  return std::max(bytes_at_once / kPieces, bytes_at_once / kMessages * ranks);
}

int64_t MpiSums::pieces_at_once(int64_t ranks, int64_t bytes_at_once) {
  return std::max<int64_t>(bytes_at_once / std::max<int64_t>(piece_bytes(ranks, bytes_at_once), 1), 2);
}

int64_t MpiSums::memory(int64_t ranks, int64_t bytes_at_once) {
  return piece_bytes(ranks, bytes_at_once) * pieces_at_once(ranks, bytes_at_once);
}

MpiSums::MpiSums(MPI_Comm world, int rank, const Hosts& hosts, const Options& options)
    : world_(world),
      piece_bytes_(piece_bytes(std::ssize(hosts.of_rank), options.bytes_at_once)),
      largest_count_(options.largest_count),
      under_way_(static_cast<size_t>(pieces_at_once(std::ssize(hosts.of_rank), options.bytes_at_once))) {
  const int each = std::max(hosts.ranks_each(), 1);
  const auto ranks = static_cast<int>(hosts.of_rank.size());
  for (int place = 0; place < each; ++place) within_.ranks.push_back(rank / each * each + place);
  for (int peer = rank % each; peer < ranks; peer += each) across_.ranks.push_back(peer);
  within_.place = rank % each;
  across_.place = rank / each;
}

double MpiSums::crossing(int64_t bytes, Wire wire) const {
  const auto hosts = static_cast<double>(across_.size());
  return (wire == Wire::kBf16 ? 1 : 2) * static_cast<double>(bytes) / within_.size() * (hosts - 1) / hosts;
}

int64_t MpiSums::piece_count(int64_t unit) const {
  return std::clamp<int64_t>(piece_bytes_ / unit, 1, largest_count_);
}

int64_t MpiSums::start(std::span<std::byte> data, int64_t unit, MPI_Datatype type, MPI_Op reduction, Wire wire) {
  Operation started{data, unit, type, reduction, wire, 0, 0};
  started.pieces_left = (started.count() + piece_count(unit) - 1) / piece_count(unit);
  operations_.push_back(started);
  const int64_t number = first_ + std::ssize(operations_) - 1;
  progress();
  return number;
}

bool MpiSums::done(int64_t operation) const {
  return operation < first_ || operations_[static_cast<size_t>(operation - first_)].pieces_left == 0;
}

void MpiSums::progress() {
  for (bool moved = true; moved;) {
    moved = false;
    for (Piece& piece : under_way_)
      if (piece.stage != Stage::kOver || take(piece)) moved = advance(piece) || moved;
  }
  for (; !operations_.empty() && operations_.front().pieces_left == 0; ++first_) operations_.pop_front();
}

bool MpiSums::take(Piece& piece) {
  const auto next = std::ranges::find_if(operations_, [](const Operation& one) { return one.taken < one.count(); });
  if (next == operations_.end()) return false;
  const int64_t end = std::min(next->taken + piece_count(next->unit), next->count());
  piece.number = pieces_++;
  piece.operation = first_ + (next - operations_.begin());
  piece.elements = {std::exchange(next->taken, end), end};
  piece.stage = Stage::kSumWithin;
  post(piece);
  return true;
}

bool MpiSums::advance(Piece& piece) {
  bool moved = false;
  while (piece.stage != Stage::kOver) {
    int over = 0;
    PKM_MPI(MPI_Testall(static_cast<int>(piece.requests.size()), piece.requests.data(), &over, MPI_STATUSES_IGNORE));
    if (over == 0) break;
    moved = true;
    finish(piece);
    piece.stage = static_cast<Stage>(static_cast<int>(piece.stage) + 1);
    if (piece.stage == Stage::kOver)
      --operation(piece.operation).pieces_left;
    else
      post(piece);
  }
  return moved;
}

Share MpiSums::Team::share(Share whole, int peer) const {
  return {whole.begin + whole.count() * peer / size(), whole.begin + whole.count() * (peer + 1) / size()};
}

const MpiSums::Team& MpiSums::team(Stage stage) const {
  return stage == Stage::kSumWithin || stage == Stage::kGatherWithin ? within_ : across_;
}

Share MpiSums::stage_elements(const Piece& piece) const {
  return &team(piece.stage) == &within_ ? piece.elements : within_.share(piece.elements, within_.place);
}

int MpiSums::tag(const Piece& piece) const {
  constexpr int64_t kFirst = 16;    // others' are below
  constexpr int64_t kRound = 4096;  // pieces until tags come again; 32767 is the largest that MPI promises
  return static_cast<int>(kFirst + piece.number % kRound * 4 + static_cast<int64_t>(piece.stage));
}

bool MpiSums::rounds(const Piece& piece) {
  return operation(piece.operation).wire == Wire::kBf16 && &team(piece.stage) == &across_ && across_.size() > 1;
}

std::span<float> MpiSums::floats(const Piece& piece, Share share) {
  const Operation& whole = operation(piece.operation);
  return {reinterpret_cast<float*>(whole.data.data()) + share.begin, static_cast<size_t>(share.count())};
}

// Receives first; sends begin at the next place, so that not all begin with the first one.
void MpiSums::post(Piece& piece) {
  const Operation& whole = operation(piece.operation);
  const Team& peers = team(piece.stage);
  const Share shared = stage_elements(piece);
  const Share mine = peers.share(shared, peers.place);
  const bool adds = sums(piece.stage);
  const int64_t unit = rounds(piece) ? sizeof(bf16) : whole.unit;
  const MPI_Datatype type = rounds(piece) ? MPI_UINT16_T : whole.type;
  if (rounds(piece)) {
    piece.rounded.resize(static_cast<size_t>(shared.count()));
    const Share leaves = adds ? shared : mine;
    narrow(floats(piece, leaves), piece.rounded.data() + (leaves.begin - shared.begin));
  }
  const auto at = [&](const Share& share) {
    return rounds(piece) ? reinterpret_cast<std::byte*>(piece.rounded.data() + (share.begin - shared.begin))
                         : whole.data.data() + share.begin * unit;
  };
  piece.requests.clear();
  if (adds) piece.parts.resize(static_cast<size_t>(mine.count() * unit * peers.size()));
  for (int step = 1; step < peers.size(); ++step) {
    const int peer = (peers.place - step + peers.size()) % peers.size();
    const Share comes = adds ? mine : peers.share(shared, peer);
    PKM_MPI(MPI_Irecv(adds ? part(piece, peer) : at(comes), static_cast<int>(comes.count()), type,
                      peers.ranks[static_cast<size_t>(peer)], tag(piece), world_, &piece.requests.emplace_back()));
  }
  for (int step = 1; step < peers.size(); ++step) {
    const int peer = (peers.place + step) % peers.size();
    const Share goes = adds ? peers.share(shared, peer) : mine;
    PKM_MPI(MPI_Isend(at(goes), static_cast<int>(goes.count()), type, peers.ranks[static_cast<size_t>(peer)],
                      tag(piece), world_, &piece.requests.emplace_back()));
  }
}

// What arrived in a stage takes its place.
void MpiSums::finish(Piece& piece) {
  if (sums(piece.stage)) return rounds(piece) ? add_rounded_parts(piece) : add_parts(piece);
  if (rounds(piece)) widen(piece.rounded.data(), floats(piece, stage_elements(piece)));  // this rank's own as well
}

std::byte* MpiSums::part(Piece& piece, int peer) {
  return piece.parts.data() + std::ssize(piece.parts) / team(piece.stage).size() * peer;
}

// In the order of the team, as ranks that share memory do (comm/shared_sums.h): the same bits.
void MpiSums::add_parts(Piece& piece) {
  const Operation& whole = operation(piece.operation);
  const Team& peers = team(piece.stage);
  const Share mine = peers.share(stage_elements(piece), peers.place);
  std::byte* const own = whole.data.data() + mine.begin * whole.unit;
  const auto add = [&](const std::byte* to_add, std::byte* sum) {
    PKM_MPI(MPI_Reduce_local(to_add, sum, static_cast<int>(mine.count()), whole.type, whole.reduction));
  };
  // Up to this rank's own part, which then is the sum so far: to add is to swap.
  for (int peer = 1; peer < peers.place; ++peer) add(part(piece, peer), part(piece, 0));
  if (peers.place > 0) add(part(piece, 0), own);
  for (int peer = peers.place + 1; peer < peers.size(); ++peer) add(part(piece, peer), own);
}

// The same, of parts in bf16 but for this rank's own.
void MpiSums::add_rounded_parts(Piece& piece) {
  const Team& peers = team(piece.stage);
  const std::span<float> own = floats(piece, peers.share(stage_elements(piece), peers.place));
  std::vector<float>& sums = piece.sums;
  sums.assign(own.size(), 0.0F);
  for (int peer = 0; peer < peers.size(); ++peer) {
    const auto* rounded = reinterpret_cast<const bf16*>(part(piece, peer));
    for (size_t i = 0; i < own.size(); ++i) sums[i] += peer == peers.place ? own[i] : static_cast<float>(rounded[i]);
  }
  std::ranges::copy(sums, own.begin());
}

}  // namespace pkmesh
