// SPDX-License-Identifier: Apache-2.0
// A Communicator is a group of ranks that act together. Every rank calls the same collectives in the same order, from
// one thread; what a call costs is entered in the ledger under its purpose. Spans are typed and sizes are int64_t
// elements: neither bytes nor void* cross this interface. Sizes may exceed INT_MAX and may be zero.
//
// Kinds: Self (a world of one), Thread (ranks are threads of one process; for tests), Mpi (processes); and on top of
// these, for ranks that compute on GPUs, Nccl and HostStaged (comm/device_communicator.h).
//
// Spans lie in host memory, or, with a kind that takes it, in device memory: then a collective has its place in the
// order of the stream in use(), and the host does not wait for it. What the host itself reads stays in host memory. An
// empty span lies where it points.
//
// The public front checks sizes, opens a Range, keeps the ledger and tells the watchdog where this rank is; a kind only
// moves bytes (the protected core at the end).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "comm/ledger.h"
#include "comm/share.h"
#include "comm/watchdog.h"
#include "runtime/bf16.h"
#include "runtime/device.h"

namespace pkmesh {

enum class Reduction { kSum, kMax, kMin };
enum class ElementType { kByte, kInt32, kInt64, kFloat, kDouble };  // what can be reduced; anything else is kByte

template <class T>
constexpr ElementType element_type() {
  static_assert(std::is_trivially_copyable_v<T>, "only plain data travels");
  if constexpr (std::is_same_v<T, float>) return ElementType::kFloat;
  if constexpr (std::is_same_v<T, double>) return ElementType::kDouble;
  if constexpr (std::is_same_v<T, int32_t>) return ElementType::kInt32;
  if constexpr (std::is_same_v<T, int64_t>) return ElementType::kInt64;
  return ElementType::kByte;
}
template <class T>
concept Reducible = (element_type<T>() != ElementType::kByte);
int64_t size_of(ElementType type);  // bytes

enum class Wire { kExact, kBf16 };  // how numbers cross hosts: as they are, or rounded to nearest

// Which machine each rank is on. Ranks of one host share memory; between hosts, bytes cross the network.
struct Hosts {
  std::vector<std::string> names;  // one per host; two hosts may share a name
  std::vector<int> of_rank;        // index into names, one per rank
  int64_t count() const { return static_cast<int64_t>(names.size()); }
  const std::string& name_of(int rank) const { return names[static_cast<size_t>(of_rank[static_cast<size_t>(rank)])]; }
  // Ranks of each host where all have as many, consecutive ones; else 0.
  int ranks_each() const;
  static Hosts one(int ranks);              // all ranks on this machine
  static Hosts even(int ranks, int hosts);  // "host 0" and on, each with its share of the ranks
};
std::string this_host();  // its name

// A collective under way. wait() (or the destructor) returns when this rank's part is complete; until then its buffers
// belong to the communicator. Several may be pending, and be waited for in any order. Must not outlive the
// communicator.
class Pending {
 public:
  Pending() = default;
  explicit Pending(std::function<void()> finish) : finish_(std::move(finish)) {}
  Pending(Pending&& other) noexcept : finish_(std::exchange(other.finish_, nullptr)) {}
  Pending& operator=(Pending&& other) noexcept;
  ~Pending();  // swallows errors: they end the job by another way
  void wait();
  bool under_way() const { return finish_ != nullptr; }

 private:
  std::function<void()> finish_;
};

namespace detail {
template <class T>
struct ReadOnly {
  using Span = std::span<const T>;
};
}  // namespace detail

// A read-only span whose element type follows from the other arguments, so that span<T> and span<const T> both fit.
template <class T>
using In = typename detail::ReadOnly<T>::Span;

class Communicator {
 public:
  Communicator(int rank, int size, Hosts hosts);
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  const Hosts& hosts() const { return hosts_; }
  // What these ranks' collectives cost this rank so far, those of a device communicator on top of this one included.
  const Ledger& ledger();

  // Device spans are read after all work queued on `stream` before the call; what is queued on it after the call, or
  // after wait() where something is pending, finds the results. Host memory has them when the call, or wait(), returns,
  // as ever. All spans of one call lie on one side. The stream must outlive the last collective.
  void use(Stream& stream) { stream_ = &stream; }

  // data[i] becomes the reduction of all ranks' data[i]: the same bits on every rank, and the same again in every run
  // with these ranks and counts.
  template <Reducible T>
  void all_reduce(std::span<T> data, Reduction reduction, Purpose purpose) {
    all_reduce_bytes(std::as_writable_bytes(data), element_type<T>(), reduction, purpose);
  }
  template <Reducible T>
  [[nodiscard]] Pending all_reduce_async(std::span<T> data, Reduction reduction, Purpose purpose) {
    return all_reduce_bytes_async({std::as_writable_bytes(data), element_type<T>(), reduction}, purpose);
  }
  // The same for sums that may be rounded where they cross hosts: each host's, and the whole, by Mpi and HostStaged;
  // other kinds are exact. All ranks have the same bits.
  [[nodiscard]] Pending sum_async(std::span<float> data, Wire wire, Purpose purpose) {
    return all_reduce_bytes_async({std::as_writable_bytes(data), ElementType::kFloat, Reduction::kSum, wire}, purpose);
  }
  // out (size * n) = every rank's in (n), in rank order.
  template <class T>
  void all_gather(In<T> in, std::span<T> out, Purpose purpose) {
    all_gather_bytes(std::as_bytes(in), std::as_writable_bytes(out), purpose);
  }
  // Block r of `in` (size * n) goes to rank r; block r of `out` (size * n) comes from it.
  template <class T>
  void all_to_all(In<T> in, std::span<T> out, Purpose purpose) {
    all_to_all_bytes(std::as_bytes(in), std::as_writable_bytes(out), purpose);
  }
  // As all_to_all with blocks of in_counts[r] and out_counts[r] elements, one after the other. All peers take part,
  // zero-sized blocks included. out_counts[r] must be what rank r sends here. `in` and `out` must not overlap.
  template <class T>
  void all_to_all_v(In<T> in, std::span<const int64_t> in_counts, std::span<T> out, std::span<const int64_t> out_counts,
                    Purpose purpose) {
    all_to_all_v_async(in, in_counts, out, out_counts, purpose).wait();
  }
  // The counts need to live during the call only, the data until wait() is over.
  template <class T>
  [[nodiscard]] Pending all_to_all_v_async(In<T> in, std::span<const int64_t> in_counts, std::span<T> out,
                                           std::span<const int64_t> out_counts, Purpose purpose) {
    static_assert(std::is_trivially_copyable_v<T>, "only plain data travels");
    return all_to_all_v_bytes_async({std::as_bytes(in), in_counts, std::as_writable_bytes(out), out_counts, sizeof(T)},
                                    purpose);
  }
  // Every rank's data (n) becomes the root's.
  template <class T>
  void broadcast(std::span<T> data, int root, Purpose purpose) {
    static_assert(std::is_trivially_copyable_v<T>, "only plain data travels");
    broadcast_bytes(std::as_writable_bytes(data), root, purpose);
  }
  void barrier();

  // Ranks may share the work on data (n) that all of them hold: each then looks after its shares of it, which are
  // ascending and apart, and with those of all ranks are everything. Where they do not, each looks after all.
  virtual bool shares_work() const { return false; }
  virtual std::vector<Share> shares(int64_t count, int /*rank*/) const { return {{0, count}}; }
  // This rank's shares of data become the sums over all ranks; what else stands in it is then undefined.
  [[nodiscard]] Pending sum_shares_async(std::span<float> data, Wire wire, Purpose purpose);
  // Every rank's shares become everyone's. Meanwhile a rank may read its own.
  [[nodiscard]] Pending gather_shares_async(std::span<float> data, Purpose purpose) {
    return gather_shares_async(data, Wire::kExact, {}, purpose);
  }
  // The same where ranks had all of data alike, and a rank added `changes` (of its shares, one after the other) to its
  // own: these cross hosts, and others add them.
  [[nodiscard]] Pending gather_changes_async(std::span<float> data, std::span<const bf16> changes, Purpose purpose) {
    return gather_shares_async(data, Wire::kBf16, changes, purpose);
  }
  // Nothing crosses a network, and what ranks share they copy with the cores that compute: there is no time to hide in.
  virtual bool all_share_memory() const { return false; }

  // Ends the whole job, all ranks, within seconds. Does not return on processes; throws JobAborted on thread ranks.
  [[noreturn]] virtual void abort(int exit_code) = 0;

  // From now on a wait longer than `limit` is reported and ends the job; zero: none is. What goes wrong behind this
  // rank's back ends it whatever the limit. See comm/watchdog.h.
  void watch(Clock::duration limit);
  // Says where this rank is, for the watchdog's report: "step 17, layer 2". Labels nest.
  class Label {
   public:
    Label(Communicator& communicator, std::string_view text);
    ~Label();
    Label(const Label&) = delete;
    Label& operator=(const Label&) = delete;

   private:
    Communicator& communicator_;
    size_t former_length_;
  };

 protected:
  // --- the core: what a kind implements. Sizes were checked; counts are in elements of `element_bytes`. ---
  struct Reduce {
    std::span<std::byte> data;
    ElementType type;
    Reduction reduction;
    Wire wire = Wire::kExact;
    int64_t count() const { return static_cast<int64_t>(data.size()) / size_of(type); }
  };
  struct Blocks {
    std::span<const std::byte> in;
    std::span<const int64_t> in_counts;
    std::span<std::byte> out;
    std::span<const int64_t> out_counts;
    int64_t element_bytes;
  };
  virtual void run_all_reduce(const Reduce& reduce) = 0;
  virtual Pending start_all_reduce(const Reduce& reduce) = 0;
  virtual void run_all_gather(std::span<const std::byte> in, std::span<std::byte> out) = 0;
  virtual Pending start_all_to_all_v(const Blocks& blocks) = 0;
  virtual void run_broadcast(std::span<std::byte> data, int root) = 0;
  virtual void run_barrier() = 0;
  // Bytes that leave this host for an all-reduce that is started, if the kind knows better than a ring.
  virtual double crossed_by_started(const Reduce& reduce) const {
    return crossed_in_ring(Collective::kAllReduce, std::ssize(reduce.data));
  }
  double crossed_in_ring(Collective collective, int64_t bytes) const;
  // Of a kind whose ranks share work.
  virtual Pending start_sum_shares(const Reduce& reduce);
  virtual Pending start_gather_shares(std::span<float> data, Wire wire, std::span<const bf16> changes);
  virtual bool takes_device_memory() const { return false; }
  Stream* stream() const { return stream_; }  // null: none is in use
  // The same ranks once more, as a communicator whose calls match among themselves. Collective.
  virtual std::unique_ptr<Communicator> twin() = 0;
  // The watchdog's thread calls this with its report when this rank waited too long: ends the job.
  virtual void on_hang(const std::string& report) = 0;
  // The watchdog's thread asks this at every look: what went wrong behind this rank's back, or nothing. A kind that
  // never has an answer does not poll.
  virtual std::string poll() { return {}; }
  virtual bool polls() const { return false; }
  // Enters in the ledger what only the device's clock knows.
  virtual void settle() {}
  // Where the watchdog finds the ranks whose memory this one can read. Set by the kind's constructor, or its own only.
  void show_on(StatusBoard board) { board_ = std::move(board); }
  RankStatus& own_status() { return board_.own(); }
  // A kind's destructor calls this first, so that the watchdog cannot call a half-dead object.
  void stop_watching() { watchdog_.reset(); }

  // One collective on its way through the front.
  struct Call {
    int64_t number;
    Collective collective;
    Purpose purpose;
    int64_t bytes;
    double crossed;
  };
  const Call& call() const { return call_; }  // the one under way
  // So much of the time in the call under way was not communication.
  void excuse(Clock::duration time) { excused_ += time; }
  void add_wait(Purpose purpose, double seconds) { book_->add(purpose, {0, 0, 0, 0, seconds}); }

 private:
  friend class DeviceCommunicator;  // stands on another communicator's core

  void all_reduce_bytes(std::span<std::byte> data, ElementType type, Reduction reduction, Purpose purpose);
  Pending all_reduce_bytes_async(const Reduce& reduce, Purpose purpose);
  void all_gather_bytes(std::span<const std::byte> in, std::span<std::byte> out, Purpose purpose);
  void all_to_all_bytes(std::span<const std::byte> in, std::span<std::byte> out, Purpose purpose);
  Pending all_to_all_v_bytes_async(const Blocks& blocks, Purpose purpose);
  Pending gather_shares_async(std::span<float> data, Wire wire, std::span<const bf16> changes, Purpose purpose);
  void broadcast_bytes(std::span<std::byte> data, int root, Purpose purpose);

  Call describe(Collective collective, Purpose purpose, int64_t bytes);
  void check_reachable(const void* memory) const;
  void run(const Call& call, const std::function<void()>& body);
  void enter(const Call& call, LedgerEntry entry, const std::function<void()>& body);
  Pending start(const Call& call, const std::function<Pending()>& body);

  int rank_;
  int size_;
  Hosts hosts_;
  Ledger ledger_;
  Ledger* book_ = &ledger_;            // where costs are entered: a device communicator's is its host's
  std::vector<Communicator*> on_top_;  // device communicators that stand on this one
  Stream* stream_ = nullptr;
  int64_t calls_ = 0;
  Call call_{};
  Clock::duration excused_{};
  std::string label_;
  StatusBoard board_;
  Clock::duration watch_limit_{};
  std::unique_ptr<Watchdog> watchdog_;
};

}  // namespace pkmesh
