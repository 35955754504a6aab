// SPDX-License-Identifier: Apache-2.0
#include "comm/mpi_sums.h"

#include <algorithm>
#include <array>
#include <exception>
#include <utility>

#include "comm/mpi_group.h"
#include "runtime/between_ops.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

constexpr int64_t kPieces = 8;     // at once, of a small world
constexpr int64_t kMessages = 64;  // of a rank in bytes_at_once, at most: none is very small

void narrow(std::span<const float> from, bf16* to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] = bf16(from[i]);
}

void widen(const bf16* from, std::span<float> to) {
  for (size_t i = 0; i < to.size(); ++i) to[i] = static_cast<float>(from[i]);
}

void add(const bf16* changes, std::span<float> to) {
  for (size_t i = 0; i < to.size(); ++i) to[i] += static_cast<float>(changes[i]);
}

}  // namespace

// All of this process that have something to do. MPI is for one thread, so they are, too.
class SumsUnderWay final : public BetweenOps {
 public:
  static SumsUnderWay& here() {
    static SumsUnderWay under_way;
    return under_way;
  }
  bool any() const { return !sums_.empty(); }
  void add(MpiSums* sums) {
    sums_.push_back(sums);
    set_between_ops(this);
  }
  void remove(MpiSums* sums) {
    std::erase(sums_, sums);
    if (sums_.empty()) set_between_ops(nullptr);
  }
  void progress() {
    for_each([](MpiSums& sums) { sums.progress(); });
  }
  // An op may be shorter than a look at all requests.
  void turn() override {
    if (Clock::now() - last_turn_ < kRest) return;
    for_each([](MpiSums& sums) {
      const auto begin = Clock::now();
      sums.progress();
      sums.spent_(std::chrono::duration<double>(Clock::now() - begin).count());
    });
    last_turn_ = Clock::now();
  }

 private:
  static constexpr auto kRest = std::chrono::microseconds(100);
  // The body may remove its element.
  template <class Body>
  void for_each(const Body& body) {
    for (size_t i = 0; i < sums_.size();) {
      MpiSums* const one = sums_[i];
      body(*one);
      if (i < sums_.size() && sums_[i] == one) ++i;
    }
  }

  std::vector<MpiSums*> sums_;
  Clock::time_point last_turn_{};
};

void MpiSums::progress_all() {
  SumsUnderWay::here().progress();
}

int wait_for(MPI_Request& request, MPI_Status* status) {
  while (SumsUnderWay::here().any()) {
    int over = 0;
    const int result = MPI_Test(&request, &over, status);
    if (result != MPI_SUCCESS || over != 0) return result;
    MpiSums::progress_all();
  }
  return MPI_Wait(&request, status);
}

// In a large world pieces grow, so that messages do not shrink, and fewer are under way. Operations may be shorter.
int64_t MpiSums::piece_bytes(int64_t ranks, int64_t bytes_at_once) {
  return std::max(bytes_at_once / kPieces, bytes_at_once / kMessages * ranks);
}

int64_t MpiSums::pieces_at_once(int64_t ranks, int64_t bytes_at_once) {
  return std::max<int64_t>(bytes_at_once / std::max<int64_t>(piece_bytes(ranks, bytes_at_once), 1), 2);
}

int64_t MpiSums::memory(int64_t ranks, int64_t bytes_at_once, int64_t bytes) {
  const int64_t piece = std::min(piece_bytes(ranks, bytes_at_once), bytes);
  return piece * pieces_at_once(ranks, bytes_at_once) * 3 / 2;  // the half is for bf16
}

MpiSums::MpiSums(MPI_Comm world, int rank, const Hosts& hosts, const Options& options,
                 std::function<void(double)> spent)
    : world_(world),
      rank_(rank),
      piece_bytes_(piece_bytes(std::ssize(hosts.of_rank), options.bytes_at_once)),
      largest_count_(options.largest_count),
      spent_(std::move(spent)),
      pieces_under_way_(static_cast<size_t>(pieces_at_once(std::ssize(hosts.of_rank), options.bytes_at_once))) {
  const int each = std::max(hosts.ranks_each(), 1);
  const auto ranks = static_cast<int>(hosts.of_rank.size());
  for (int place = 0; place < each; ++place) within_.ranks.push_back(rank / each * each + place);
  for (int peer = rank % each; peer < ranks; peer += each) across_.ranks.push_back(peer);
  within_.place = rank % each;
  across_.place = rank / each;
  const auto host_of = [&](int of) { return hosts.of_rank[static_cast<size_t>(of)]; };
  const auto elsewhere = std::ranges::count_if(across_.ranks, [&](int peer) { return host_of(peer) != host_of(rank); });
  crossing_ = 2.0 * static_cast<double>(elsewhere) / ranks;
}

MpiSums::~MpiSums() {
  SumsUnderWay::here().remove(this);
}

double MpiSums::crossing(int64_t bytes, Wire wire) const {
  return crossing_ * static_cast<double>(bytes) / (wire == Wire::kBf16 ? 2 : 1);
}

int64_t MpiSums::piece_count(int64_t unit) const {
  return std::clamp<int64_t>(piece_bytes_ / unit, 1, largest_count_);
}

int64_t MpiSums::start(std::span<std::byte> data, int64_t unit, MPI_Datatype type, MPI_Op reduction, Wire wire) {
  return start({data, unit, type, reduction, wire});
}

int64_t MpiSums::start_sum_shares(std::span<float> data, Wire wire) {
  Operation operation{std::as_writable_bytes(data), sizeof(float), MPI_FLOAT, MPI_SUM, wire};
  operation.end = Stage::kGatherAcross;
  return start(operation);
}

int64_t MpiSums::start_gather_shares(std::span<float> data, Wire wire, std::span<const bf16> changes) {
  Operation operation{std::as_writable_bytes(data), sizeof(float), MPI_FLOAT, MPI_SUM, wire};
  operation.first = Stage::kGatherAcross;
  operation.changes = changes;
  return start(operation);
}

std::vector<Share> MpiSums::shares(int64_t count, int rank) const {
  std::vector<Share> shares;
  const int64_t step = piece_count(sizeof(float));
  for (int64_t begin = 0; begin < count; begin += step) {
    const Share part = share({begin, std::min(begin + step, count)}, rank);
    if (part.count() > 0) shares.push_back(part);
  }
  return shares;
}

Share MpiSums::share(Share piece, int rank) const {
  return across_.share(within_.share(piece, rank % within_.size()), rank / within_.size());
}

int64_t MpiSums::start(Operation started) {
  started.pieces_left = (started.count() + piece_count(started.unit) - 1) / piece_count(started.unit);
  if (operations_.empty()) SumsUnderWay::here().add(this);
  operations_.push_back(started);
  const int64_t number = first_ + std::ssize(operations_) - 1;
  progress();
  return number;
}

bool MpiSums::done(int64_t operation) const {
  return operation < first_ || operations_[static_cast<size_t>(operation - first_)].pieces_left == 0;
}

// Who leaves by an exception may have started what others never will, for they wait for it elsewhere.
void MpiSums::wait(int64_t operation) {
  constexpr auto kPatience = std::chrono::seconds(5);
  const auto begin = Clock::now();
  while (!done(operation)) {
    progress_all();
    if (std::uncaught_exceptions() > 0 && Clock::now() - begin > kPatience) failed_ = true;
  }
}

void MpiSums::progress() {
  PKM_CHECK(!failed_, "sums under way that cannot end");
  failed_ = true;  // unless the following comes to its end
  for (bool moved = true; moved;) {
    moved = false;
    for (Piece& piece : pieces_under_way_)
      if (piece.stage != Stage::kOver || take(piece)) moved = advance(piece) || moved;
  }
  failed_ = false;
  for (; !operations_.empty() && operations_.front().pieces_left == 0; ++first_) operations_.pop_front();
  if (operations_.empty()) SumsUnderWay::here().remove(this);
}

bool MpiSums::take(Piece& piece) {
  const auto next = std::ranges::find_if(operations_, [](const Operation& one) { return one.taken < one.count(); });
  if (next == operations_.end()) return false;
  const int64_t end = std::min(next->taken + piece_count(next->unit), next->count());
  piece.number = pieces_++;
  piece.operation = first_ + (next - operations_.begin());
  piece.elements = {std::exchange(next->taken, end), end};
  if (next->gathers_changes()) {
    const auto count = static_cast<size_t>(share(piece.elements, rank_).count());
    piece.changes = next->changes.first(count);
    next->changes = next->changes.subspan(count);
  }
  piece.stage = next->first;
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
    Operation& whole = operation(piece.operation);
    piece.stage = static_cast<Stage>(static_cast<int>(piece.stage) + 1);
    if (piece.stage != whole.end) {
      post(piece);
      continue;
    }
    piece.stage = Stage::kOver;
    --whole.pieces_left;
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
    bf16* const rounded = piece.rounded.data() + (leaves.begin - shared.begin);
    if (whole.gathers_changes())
      std::ranges::copy(piece.changes, rounded);
    else
      narrow(floats(piece, leaves), rounded);
  }
  const auto at = [&](const Share& share) {
    return rounds(piece) ? reinterpret_cast<std::byte*>(piece.rounded.data() + (share.begin - shared.begin))
                         : whole.data.data() + share.begin * unit;
  };
  piece.requests.clear();
  if (adds && peers.size() > 1) {
    // For all pieces to come of operations that are not longer.
    piece.parts.reserve(static_cast<size_t>(std::min(piece_bytes_, std::ssize(whole.data)) + unit * peers.size()));
    piece.parts.resize(static_cast<size_t>(mine.count() * unit * peers.size()));
  }
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
  if (rounds(piece)) take_rounded(piece);
}

// Sums: this rank's own as well, that all ranks have the same bits. Changes: its own were made.
void MpiSums::take_rounded(Piece& piece) {
  const Share all = stage_elements(piece);
  if (!operation(piece.operation).gathers_changes()) return widen(piece.rounded.data(), floats(piece, all));
  const Share mine = share(piece.elements, rank_);
  for (const Share& others : {Share{all.begin, mine.begin}, Share{mine.end, all.end}})
    add(piece.rounded.data() + (others.begin - all.begin), floats(piece, others));
}

std::byte* MpiSums::part(Piece& piece, int peer) {
  return piece.parts.data() + std::ssize(piece.parts) / team(piece.stage).size() * peer;
}

// In the order of the team: on one host the bits are those of ranks that share memory (comm/shared_sums.h).
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
  constexpr size_t kBlock = 1024;
  std::array<float, kBlock> sums;
  for (size_t begin = 0; begin < own.size(); begin += kBlock) {
    const auto block = own.subspan(begin, std::min(kBlock, own.size() - begin));
    sums.fill(0);
    for (int peer = 0; peer < peers.size(); ++peer) {
      const auto* const rounded = reinterpret_cast<const bf16*>(part(piece, peer)) + begin;
      if (peer == peers.place)
        for (size_t i = 0; i < block.size(); ++i) sums[i] += block[i];
      else
        for (size_t i = 0; i < block.size(); ++i) sums[i] += static_cast<float>(rounded[i]);
    }
    std::copy_n(sums.begin(), block.size(), block.begin());
  }
}

}  // namespace pkmesh
