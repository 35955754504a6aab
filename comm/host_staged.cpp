// SPDX-License-Identifier: Apache-2.0
#include "comm/host_staged.h"

#include <algorithm>
#include <deque>

#include "runtime/buffer.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

// A collective under way: counts its chunks.
struct Operation {
  explicit Operation(Device device) : ready(device), done(device) {}
  Event ready;          // its data are there
  Event done;           // its last result is on the device
  int64_t pending = 0;  // chunks whose results are not yet on their way to the device
};

// Bytes between device memory and a place in a slot.
struct Copy {
  std::byte* device;
  int64_t at;  // in the slot
  int64_t bytes;
};

struct Slot {
  Slot(Device device, int64_t bytes)
      : in(device, bytes, MemoryKind::kHost), out(device, bytes, MemoryKind::kHost), filled(device), emptied(device) {}
  Buffer<std::byte> in, out;
  Event filled;   // `in` has come from the device
  Event emptied;  // the results have gone to the device
};

struct Chunk {
  std::shared_ptr<Operation> operation;
  std::vector<Copy> in;                             // device -> slot.in
  std::function<Pending(const Slot& slot)> travel;  // slot.in -> slot.out, or in place
  std::vector<Copy> out;                            // slot -> device
  bool in_place = false;                            // the result is in slot.in
  Slot* slot = nullptr;
  Pending travelling;
};

class HostStagedCommunicator final : public DeviceCommunicator {
 public:
  HostStagedCommunicator(Communicator& host, Device device, const HostStagedOptions& options)
      : DeviceCommunicator(host),
        device_(device),
        slot_bytes_(std::max<int64_t>(options.slot_bytes, int64_t{8} * host.size())),
        ranks_(twin_of(host)),
        down_(device),
        up_(device) {
    PKM_CHECK(options.slots >= 1, "{} slots", options.slots);
    for (int i = 0; i < options.slots && size() > 1; ++i) slots_.push_back(std::make_unique<Slot>(device, slot_bytes_));
    for (const auto& slot : slots_) free_.push_back(slot.get());
  }
  // Copies from and to the slots end before these do. After a kernel's fault waiting fails too, and the first error is
  // the one to be read.
  ~HostStagedCommunicator() override {
    stop_watching();
    for (Stream* const stream : {&down_, &up_}) {
      try {
        stream->synchronize();
      } catch (...) {
      }
    }
  }

 protected:
  double crossed_by_started(const Reduce& reduce) const override { return crossed_by_started_of(*ranks_, reduce); }

  Pending device_all_reduce(const Reduce& reduce) override {
    if (size() == 1) return {};
    const auto operation = begin();
    const int64_t unit = size_of(reduce.type);
    for_pieces(reduce.count(), slot_bytes_ / unit, [&](int64_t first, int64_t count) {
      Chunk chunk = chunk_of(operation);
      chunk.in = chunk.out = {{reduce.data.data() + first * unit, 0, count * unit}};
      chunk.in_place = true;
      chunk.travel = [this, reduce, bytes = count * unit](const Slot& slot) {
        return start_all_reduce_of(*ranks_, {front(slot.in, bytes), reduce.type, reduce.reduction, reduce.wire});
      };
      add(std::move(chunk));
    });
    return started(operation);
  }

  Pending device_all_gather(std::span<const std::byte> in, std::span<std::byte> out) override {
    if (size() == 1) return keep(in, out);
    const auto operation = begin();
    const auto block = static_cast<int64_t>(in.size());
    for_pieces(block, slot_bytes_ / size(), [&](int64_t first, int64_t bytes) {
      Chunk chunk = chunk_of(operation);
      chunk.in = {{device_address(in) + first, 0, bytes}};
      for (int r = 0; r < size(); ++r) chunk.out.push_back({out.data() + r * block + first, r * bytes, bytes});
      chunk.travel = [this, bytes](const Slot& slot) {
        run_all_gather_of(*ranks_, front(slot.in, bytes), front(slot.out, size() * bytes));
        return Pending();
      };
      add(std::move(chunk));
    });
    return started(operation);
  }

  Pending device_broadcast(std::span<std::byte> data, int root) override {
    if (size() == 1) return {};
    const auto operation = begin();
    for_pieces(static_cast<int64_t>(data.size()), slot_bytes_, [&](int64_t first, int64_t bytes) {
      Chunk chunk = chunk_of(operation);
      (rank() == root ? chunk.in : chunk.out) = {{data.data() + first, 0, bytes}};
      chunk.in_place = true;
      chunk.travel = [this, root, bytes](const Slot& slot) {
        run_broadcast_of(*ranks_, front(slot.in, bytes), root);
        return Pending();
      };
      add(std::move(chunk));
    });
    return started(operation);
  }

  // A chunk takes as much of every pair's block. Pairs differ, so the ranks first agree on the number of chunks.
  Pending device_all_to_all_v(const Blocks& blocks) override {
    const auto operation = begin();
    const auto in = starts(blocks.in_counts, blocks.element_bytes);
    const auto out = starts(blocks.out_counts, blocks.element_bytes);
    keep_own_block(blocks, in, out);
    const int64_t share = slot_bytes_ / size();
    const int64_t chunks = agree_on_chunks(blocks, share);
    for (int64_t i = 0; i < chunks; ++i) {
      Chunk chunk = chunk_of(operation);
      auto in_counts = cut(in, i * share, share, device_address(blocks.in), chunk.in);
      auto out_counts = cut(out, i * share, share, blocks.out.data(), chunk.out);
      chunk.travel = [this, in_counts = std::move(in_counts), out_counts = std::move(out_counts)](const Slot& slot) {
        const auto sum = [](const std::vector<int64_t>& counts) {
          int64_t total = 0;
          for (const int64_t count : counts) total += count;
          return total;
        };
        return start_all_to_all_v_of(
            *ranks_, {front(slot.in, sum(in_counts)), in_counts, front(slot.out, sum(out_counts)), out_counts, 1});
      };
      add(std::move(chunk));
    }
    return started(operation);
  }

 private:
  static std::span<std::byte> front(const Buffer<std::byte>& buffer, int64_t bytes) {
    return buffer.span().first(static_cast<size_t>(bytes));
  }
  // Chunks hold the addresses of both sides alike; what comes in is only read.
  static std::byte* device_address(std::span<const std::byte> in) { return const_cast<std::byte*>(in.data()); }

  template <class Body>
  static void for_pieces(int64_t count, int64_t largest, const Body& body) {
    for (int64_t first = 0; first < count; first += largest) body(first, std::min(largest, count - first));
  }

  // Where each peer's block begins in its span, in bytes, and where the last one ends.
  static std::vector<int64_t> starts(std::span<const int64_t> counts, int64_t element_bytes) {
    std::vector<int64_t> bytes = {0};
    for (const int64_t count : counts) bytes.push_back(bytes.back() + count * element_bytes);
    return bytes;
  }

  // Adds copies of bytes [first, first + share) of each peer's block, packed; returns how many there are of each.
  std::vector<int64_t> cut(const std::vector<int64_t>& starts, int64_t first, int64_t share, std::byte* device,
                           std::vector<Copy>& copies) const {
    std::vector<int64_t> counts(static_cast<size_t>(size()), 0);
    int64_t at = 0;
    for (size_t peer = 0; peer < counts.size(); ++peer) {
      if (static_cast<int>(peer) == rank()) continue;
      counts[peer] = std::clamp<int64_t>(starts[peer + 1] - starts[peer] - first, 0, share);
      if (counts[peer] > 0) copies.push_back({device + starts[peer] + first, at, counts[peer]});
      at += counts[peer];
    }
    return counts;
  }

  Pending keep(std::span<const std::byte> in, std::span<std::byte> out) {
    copy(*stream(), in, out);
    return {};
  }

  void keep_own_block(const Blocks& blocks, const std::vector<int64_t>& in, const std::vector<int64_t>& out) {
    const auto me = static_cast<size_t>(rank());
    const auto bytes = static_cast<size_t>(in[me + 1] - in[me]);
    PKM_CHECK(static_cast<int64_t>(bytes) == out[me + 1] - out[me],
              "all_to_all_v: rank {} sends itself {} elements and expects {}", me, blocks.in_counts[me],
              blocks.out_counts[me]);
    keep(blocks.in.subspan(static_cast<size_t>(in[me]), bytes),
         blocks.out.subspan(static_cast<size_t>(out[me]), bytes));
  }

  int64_t agree_on_chunks(const Blocks& blocks, int64_t share) {
    if (size() == 1) return 0;
    int64_t largest = 0;
    for (const auto counts : {blocks.in_counts, blocks.out_counts})
      for (size_t peer = 0; peer < counts.size(); ++peer)
        if (static_cast<int>(peer) != rank()) largest = std::max(largest, counts[peer] * blocks.element_bytes);
    int64_t chunks = (largest + share - 1) / share;
    run_all_reduce_of(host_, {std::as_writable_bytes(std::span(&chunks, 1)), ElementType::kInt64, Reduction::kMax});
    return chunks;
  }

  std::shared_ptr<Operation> begin() {
    auto operation = std::make_shared<Operation>(device_);
    operation->ready.record(*stream());
    return operation;
  }

  static Chunk chunk_of(const std::shared_ptr<Operation>& operation) {
    Chunk chunk;
    chunk.operation = operation;
    return chunk;
  }

  void add(Chunk chunk) {
    ++chunk.operation->pending;
    waiting_.push_back(std::move(chunk));
  }

  Pending started(const std::shared_ptr<Operation>& operation) {
    if (operation->pending == 0) return {};
    fill_slots();
    while (can_send() && copying_.front().slot->filled.reached()) send();
    return Pending([this, operation] {
      finish(*operation);
      operation->done.hold(*stream());
    });
  }

  // From the device to free slots.
  void fill_slots() {
    for (; !waiting_.empty() && !free_.empty(); waiting_.pop_front(), free_.pop_front()) {
      Chunk& chunk = waiting_.front();
      chunk.slot = free_.front();
      chunk.slot->emptied.hold(down_);
      chunk.operation->ready.hold(down_);
      for (const Copy& piece : chunk.in)
        copy(down_, std::span<const std::byte>(piece.device, static_cast<size_t>(piece.bytes)),
             chunk.slot->in.span().subspan(static_cast<size_t>(piece.at), static_cast<size_t>(piece.bytes)));
      chunk.slot->filled.record(down_);
      copying_.push_back(std::move(chunk));
    }
  }

  // One slot is left to be filled while the others' contents travel.
  bool can_send() const { return !copying_.empty() && (travelling_.empty() || travelling_.size() + 1 < slots_.size()); }

  void send() {
    Chunk& chunk = copying_.front();
    const auto begin = Clock::now();
    chunk.operation->ready.synchronize();
    excuse(Clock::now() - begin);  // the device was still computing
    chunk.slot->filled.synchronize();
    chunk.travelling = chunk.travel(*chunk.slot);
    travelling_.push_back(std::move(chunk));
    copying_.pop_front();
  }

  // Results of the oldest chunk back to the device.
  void receive() {
    Chunk& chunk = travelling_.front();
    chunk.travelling.wait();
    const Buffer<std::byte>& results = chunk.in_place ? chunk.slot->in : chunk.slot->out;
    for (const Copy& piece : chunk.out)
      copy(up_,
           std::span<const std::byte>(results.span())
               .subspan(static_cast<size_t>(piece.at), static_cast<size_t>(piece.bytes)),
           std::span(piece.device, static_cast<size_t>(piece.bytes)));
    chunk.slot->emptied.record(up_);
    if (--chunk.operation->pending == 0) chunk.operation->done.record(up_);
    free_.push_back(chunk.slot);
    travelling_.pop_front();
  }

  void finish(const Operation& operation) {
    while (operation.pending > 0) {
      fill_slots();
      if (can_send())
        send();
      else
        receive();
    }
  }

  const Device device_;
  const int64_t slot_bytes_;
  const std::unique_ptr<Communicator> ranks_;  // of its own: when a chunk travels depends on the device
  Stream down_, up_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::deque<Slot*> free_;
  std::deque<Chunk> waiting_, copying_, travelling_;  // in this order, and each in the order of the calls
};

}  // namespace

std::unique_ptr<DeviceCommunicator> make_host_staged(Communicator& host, Device device,
                                                     const HostStagedOptions& options) {
  return std::make_unique<HostStagedCommunicator>(host, device, options);
}

}  // namespace pkmesh
