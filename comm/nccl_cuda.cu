// SPDX-License-Identifier: Apache-2.0
// Device memory from GPU to GPU over NCCL (2.18 and later), bootstrapped over the host's communicator.
//
// Two links, each an NCCL communicator with a stream of its own: one for buckets of dense gradients, which are issued
// early and waited for late, one for everything else, which must not queue up behind them. All ranks issue on both from
// one thread in one order, and a GPU has room for the kernels of both, so that neither waits for the other's to end.
//
// The host waits until NCCL has launched a call, never until a GPU is through with it. A call puts its link's stream
// behind the caller's; wait() puts the caller's stream behind the link's. NCCL's own calls do not block: they are
// polled until they are through, with an eye on its asynchronous errors. After an error or a hang both links are
// aborted and the job ends.
//
// Plain C++: a test compiles this file against an NCCL of its own, on an emulated device.
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "comm/device_communicator.h"
#include "runtime/buffer.h"
#include "runtime/check.h"

static_assert(NCCL_VERSION_CODE >= NCCL_VERSION(2, 18, 0), "pkmesh needs NCCL 2.18 or later");

namespace pkmesh::cuda {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// The longest wait for one call where no watchdog looks (before the first collective, after the last), and elsewhere.
constexpr Clock::duration kPatience = std::chrono::minutes(5);
constexpr Clock::duration kForEver = Clock::duration::max();

ncclDataType_t nccl_type(ElementType type) {
  switch (type) {
    case ElementType::kByte:
      return ncclChar;
    case ElementType::kInt32:
      return ncclInt32;
    case ElementType::kInt64:
      return ncclInt64;
    case ElementType::kFloat:
      return ncclFloat32;
    case ElementType::kDouble:
      return ncclFloat64;
  }
  PKM_CHECK(false, "no element type {}", static_cast<int>(type));
}

ncclRedOp_t nccl_op(Reduction reduction) {
  return reduction == Reduction::kSum ? ncclSum : reduction == Reduction::kMax ? ncclMax : ncclMin;
}

std::string error_text(ncclComm_t comm, ncclResult_t result) {
  const char* const last = ncclGetLastError(comm);
  return fmt::format("{}{}{}", ncclGetErrorString(result), last == nullptr || *last == 0 ? "" : ": ",
                     last == nullptr ? "" : last);
}

// One NCCL communicator and the stream on which its operations run.
class Link {
 public:
  Link(const char* name, Device device, int rank) : name_(name), rank_(rank), stream_(device) {}
  ~Link() {
    if (comm_ == nullptr || aborted_) return;
    if (std::uncaught_exceptions() > 0) {  // the peers may never come
      abort();
      return;
    }
    try {
      check(ncclCommFinalize(comm_), "ncclCommFinalize", kPatience);
      // Frees what is left before it returns, though the communicator is non-blocking: NCCL up to 2.21 does so in
      // place, and later ones make the group of a communicator that goes a blocking one. No thread is left to the exit.
      ncclCommDestroy(comm_);
    } catch (const std::exception&) {
      abort();
    }
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  void connect(int size, const ncclUniqueId& id, int most_blocks) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.maxCTAs = most_blocks;
    check(ncclCommInitRankConfig(&comm_, size, id, rank_, &config), "ncclCommInitRankConfig", kPatience);
  }

  // Calls of one group, behind all that was issued before. Through when this returns, done when the stream says so.
  template <class Calls>
  void issue(Clock::duration patience, const Calls& calls) {
    const auto group = [&] {
      const std::lock_guard lock(mutex_);
      check_started(ncclGroupStart(), "ncclGroupStart");
      calls(comm_, static_cast<cudaStream_t>(stream_.native()));
      return ncclGroupEnd();
    };
    check(group(), "ncclGroupEnd", patience);
  }

  // In a group a call is only noted.
  void check_started(ncclResult_t result, const char* what) const {
    PKM_CHECK(result == ncclSuccess || result == ncclInProgress, "{} on rank {} ({}), {} link: {}", what, rank_,
              this_host(), name_, error_text(comm_, result));
  }

  // Waits until NCCL is through with a call that returned `result`.
  void check(ncclResult_t result, const char* what, Clock::duration patience) const {
    check_started(result, what);
    if (result == ncclInProgress) wait(what, patience, [&] { return state() != ncclInProgress; });
  }

  template <class Condition>
  void wait(const char* what, Clock::duration patience, const Condition& condition) const {
    const auto begin = Clock::now();
    for (int64_t polls = 0; !condition(); ++polls) {
      check_started(state(), what);
      if (aborted_) std::this_thread::sleep_for(seconds(5));  // the watchdog's thread is ending the job
      PKM_CHECK(!aborted_, "{} on rank {} ({}), {} link: aborted", what, rank_, this_host(), name_);
      const auto waited = Clock::now() - begin;
      PKM_CHECK(waited < patience, "{} on rank {} ({}), {} link: not done after {} s", what, rank_, this_host(), name_,
                std::chrono::duration_cast<seconds>(waited).count());
      if (waited > milliseconds(10))
        std::this_thread::sleep_for(milliseconds(1));
      else
        std::this_thread::yield();
    }
    check_started(state(), what);
  }

  // NCCL's asynchronous error; ncclInProgress while a call is not through.
  ncclResult_t state() const {
    const std::lock_guard lock(mutex_);
    return asked();
  }
  // For the watchdog's thread. Empty: none, or the rank's own thread is in NCCL just now, and sees for itself.
  std::string failure() const {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    const ncclResult_t now = !lock || comm_ == nullptr ? ncclSuccess : asked();
    return now == ncclSuccess || now == ncclInProgress
               ? std::string()
               : fmt::format("NCCL on rank {} ({}), {} link: {}", rank_, this_host(), name_, error_text(comm_, now));
  }
  void abort() {  // without the mutex, which a thread that hangs in NCCL holds
    if (comm_ != nullptr && !aborted_.exchange(true)) ncclCommAbort(comm_);
  }
  Stream& stream() { return stream_; }

 private:
  ncclResult_t asked() const {
    if (aborted_) return ncclInProgress;  // NCCL frees it
    ncclResult_t state = ncclSuccess;
    const ncclResult_t result = ncclCommGetAsyncError(comm_, &state);
    return result == ncclSuccess ? state : result;
  }

  const char* name_;
  int rank_;
  Stream stream_;  // made first: it also makes the device this thread's
  ncclComm_t comm_ = nullptr;
  // One thread at a time in the communicator: since NCCL 2.26 who asks for its state also joins the thread that
  // launched the last group, and frees what NCCL knows of it. Two at once would free it twice.
  mutable std::mutex mutex_;
  std::atomic<bool> aborted_{false};
};

// Blocks of a link's kernel. NCCL's manual: kernels that run side by side must fit into the GPU together, and a block
// may need a multiprocessor for itself. A power of two, for NCCL rounds the blocks of sends and receives up to one.
int blocks_of_a_link(Device device) {
  constexpr unsigned kMost = 32;
  const auto half = static_cast<unsigned>(std::max(multiprocessors(device) / 2, 1));
  return static_cast<int>(std::min(std::bit_floor(half), kMost));
}

class NcclCommunicator final : public DeviceCommunicator {
 public:
  NcclCommunicator(Communicator& host, Device device)
      : DeviceCommunicator(host),
        device_(device),
        exchange_(std::make_shared<Link>("exchange", device, host.rank())),
        dense_(std::make_shared<Link>("dense", device, host.rank())) {
    int32_t most_blocks = blocks_of_a_link(device);  // alike on all ranks, whose GPUs may not be
    const auto bytes = std::as_writable_bytes(std::span(&most_blocks, 1));
    run_all_reduce_of(host_, {bytes, ElementType::kInt32, Reduction::kMin});
    for (Link* link : {exchange_.get(), dense_.get()}) {
      ncclUniqueId id{};
      if (rank() == 0) link->check_started(ncclGetUniqueId(&id), "ncclGetUniqueId");
      run_broadcast_of(host_, std::as_writable_bytes(std::span(id.internal)), 0);
      link->connect(size(), id, most_blocks);
    }
    warm_up();
  }
  ~NcclCommunicator() override {
    stop_watching();
    own_status().clear_device();
  }

  [[noreturn]] void abort(int exit_code) override {
    abort_links(seconds(1));
    DeviceCommunicator::abort(exit_code);
  }

 protected:
  Pending device_all_reduce(const Reduce& reduce) override {
    return launch([&](const Link& link, ncclComm_t comm, cudaStream_t stream) {
      link.check_started(ncclAllReduce(reduce.data.data(), reduce.data.data(), static_cast<size_t>(reduce.count()),
                                       nccl_type(reduce.type), nccl_op(reduce.reduction), comm, stream),
                         "ncclAllReduce");
    });
  }

  Pending device_all_gather(std::span<const std::byte> in, std::span<std::byte> out) override {
    return launch([&](const Link& link, ncclComm_t comm, cudaStream_t stream) {
      link.check_started(ncclAllGather(in.data(), out.data(), in.size(), ncclChar, comm, stream), "ncclAllGather");
    });
  }

  // One group with a send and a receive per pair, zero-sized ones too, this rank's own block among them.
  Pending device_all_to_all_v(const Blocks& blocks) override {
    const auto me = static_cast<size_t>(rank());
    PKM_CHECK(blocks.in_counts[me] == blocks.out_counts[me],
              "all_to_all_v: rank {} sends itself {} elements and expects {}", me, blocks.in_counts[me],
              blocks.out_counts[me]);
    return launch([&](const Link& link, ncclComm_t comm, cudaStream_t stream) {
      const std::byte* in = blocks.in.data();
      std::byte* out = blocks.out.data();
      for (int peer = 0; peer < size(); ++peer) {
        const auto sent = static_cast<size_t>(blocks.in_counts[static_cast<size_t>(peer)] * blocks.element_bytes);
        const auto received = static_cast<size_t>(blocks.out_counts[static_cast<size_t>(peer)] * blocks.element_bytes);
        link.check_started(ncclSend(in, sent, ncclChar, peer, comm, stream), "ncclSend");
        link.check_started(ncclRecv(out, received, ncclChar, peer, comm, stream), "ncclRecv");
        in += sent;
        out += received;
      }
    });
  }

  Pending device_broadcast(std::span<std::byte> data, int root) override {
    return launch([&](const Link& link, ncclComm_t comm, cudaStream_t stream) {
      link.check_started(ncclBroadcast(data.data(), data.data(), data.size(), ncclChar, root, comm, stream),
                         "ncclBroadcast");
    });
  }

  void on_hang(const std::string& report) override {
    abort_links(seconds(0));  // the report first
    DeviceCommunicator::on_hang(report);
  }

  // The host is not inside a call while the GPU is, so the oldest operation under way is shown on the board here.
  std::string poll() override {
    for (const auto& link : {exchange_, dense_})
      if (std::string failure = link->failure(); !failure.empty()) return failure;
    const std::lock_guard lock(mutex_);
    try {
      drop_done();
    } catch (const std::exception& error) {  // whatever a kernel did wrong shows in the next call, which may be this
      return fmt::format("the GPU of rank {} ({}): {}", rank(), this_host(), error.what());
    }
    if (under_way_.empty()) {
      own_status().clear_device();
    } else {
      const Call& oldest = under_way_.front().call;
      own_status().show_device(oldest.number, oldest.collective, oldest.purpose, oldest.bytes);
    }
    return {};
  }
  bool polls() const override { return true; }

  void settle() override {
    for (; !waits_.empty() && waits_.front().end->reached(); waits_.pop_front())
      add_wait(waits_.front().purpose, Event::milliseconds(*waits_.front().begin, *waits_.front().end) * 1e-3);
  }

 private:
  struct UnderWay {
    Call call;
    std::shared_ptr<Event> done;
  };
  struct Wait {  // of the caller's stream
    Purpose purpose;
    std::shared_ptr<Event> begin, end;
  };

  template <class Calls>
  Pending launch(const Calls& calls) {
    Link& link = call().purpose == Purpose::kDense ? *dense_ : *exchange_;
    Event ready(device_);
    ready.record(*stream());
    ready.hold(link.stream());
    link.issue(kForEver, [&](ncclComm_t comm, cudaStream_t native) { calls(link, comm, native); });
    const auto done = std::make_shared<Event>(device_);
    done->record(link.stream());
    {
      const std::lock_guard lock(mutex_);
      drop_done();
      under_way_.push_back({call(), done});
    }
    return Pending([this, done, purpose = call().purpose] {
      const auto timed = [&] { return std::make_shared<Event>(device_, Event::Kind::kTimed); };
      const Wait wait{purpose, timed(), timed()};
      wait.begin->record(*stream());
      done->hold(*stream());
      wait.end->record(*stream());
      waits_.push_back(wait);
      if (waits_.size() > kKeptWaits) settle();
    });
  }

  // The mutex is held; links finish each in their own order. One by one, so that an error leaves no emptied elements.
  void drop_done() {
    for (auto one = under_way_.begin(); one != under_way_.end();)
      one = one->done->reached() ? under_way_.erase(one) : std::next(one);
  }

  // NCCL connects two ranks when they first need it; better here than in the first step.
  void warm_up() {
    const Buffer<float> memory(device_, 3 * size());
    const auto blocks = memory.span().first(static_cast<size_t>(size()));
    const auto others = memory.span().subspan(blocks.size(), blocks.size());
    for (const auto& link : {exchange_, dense_}) {
      link->issue(kPatience, [&](ncclComm_t comm, cudaStream_t native) {
        link->check_started(ncclAllReduce(memory.data(), memory.data(), 1, ncclFloat32, ncclSum, comm, native),
                            "ncclAllReduce");
      });
      if (link == exchange_)
        link->issue(kPatience, [&](ncclComm_t comm, cudaStream_t native) {
          for (int peer = 0; peer < size(); ++peer) {
            const auto p = static_cast<size_t>(peer);
            link->check_started(ncclSend(&blocks[p], 1, ncclFloat32, peer, comm, native), "ncclSend");
            link->check_started(ncclRecv(&others[p], 1, ncclFloat32, peer, comm, native), "ncclRecv");
          }
        });
      Event done(device_);
      done.record(link->stream());
      link->wait("the first exchange", kPatience, [&] { return done.reached(); });
    }
  }

  // Releases kernels that wait for peers. NCCL may be what hangs, so nobody waits for it longer than `patience`.
  void abort_links(seconds patience) {
    const auto done = std::make_shared<std::atomic<bool>>(false);
    std::thread([exchange = exchange_, dense = dense_, done] {
      exchange->abort();
      dense->abort();
      *done = true;
    }).detach();
    for (const auto begin = Clock::now(); !*done && Clock::now() - begin < patience;)
      std::this_thread::sleep_for(milliseconds(10));
  }

  static constexpr size_t kKeptWaits = 256;

  const Device device_;
  const std::shared_ptr<Link> exchange_, dense_;
  std::mutex mutex_;                // of what the watchdog's thread reads too
  std::deque<UnderWay> under_way_;  // in the order of the calls
  std::deque<Wait> waits_;          // not yet in the ledger
};

}  // namespace

std::unique_ptr<DeviceCommunicator> make_nccl(Communicator& host, Device device);

std::unique_ptr<DeviceCommunicator> make_nccl(Communicator& host, Device device) {
  return std::make_unique<NcclCommunicator>(host, device);
}

}  // namespace pkmesh::cuda
