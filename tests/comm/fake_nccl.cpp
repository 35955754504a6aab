// SPDX-License-Identifier: Apache-2.0
// The part of NCCL that comm/nccl_cuda.cu calls, for ranks as threads or processes of one machine, on the streams of
// the asynchronous device. Stricter than NCCL: what NCCL's manual asks for and its library lets pass is an error here.
//
//   - communicators must be non-blocking, and a group reaches the stream only once it was polled to its end;
//   - what is destroyed was finalised before, and polled until that was through;
//   - one thread at a time is in a communicator, with a group or a question about its state;
//   - two of them must have room on the device at once;
//   - all ranks must issue the same operations in the same order, with the same counts;
//   - an exchange has a send and a receive for every pair of ranks, zero-sized ones included.
//
// PKMESH_FAKE_NCCL_LOSE="RANK OPERATION": that rank's operation of that number is never done and becomes an
// asynchronous error there.
#include <fcntl.h>
#include <nccl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "async_device.h"

namespace {

constexpr int kMaxRanks = 8;
constexpr size_t kArea = size_t{4} << 20;  // bytes that a rank may hand in at once

enum class Kind { kAllReduce, kAllGather, kBroadcast, kExchange };

// What a rank says of its next operation, in memory that all ranks share.
struct Offer {
  Kind kind;
  size_t count;
  ncclDataType_t type;
  ncclRedOp_t op;
  int root;
  std::array<size_t, kMaxRanks> sent;  // bytes to each rank
};

struct Shared {
  std::atomic<int> joined;
  std::atomic<int64_t> arrived;  // at all meetings so far
  std::array<Offer, kMaxRanks> offers;
  std::array<std::array<std::byte, kArea>, kMaxRanks> data;
};

struct Message {
  bool send;
  void* memory;
  size_t bytes;
  int peer;
};

struct Operation {
  Offer offer;
  const void* in = nullptr;
  void* out = nullptr;
  std::vector<Message> messages;
  void* stream = nullptr;
};

}  // namespace

struct ncclComm {
  int rank;
  int size;
  Shared* shared;
  std::atomic<int> state{ncclSuccess};
  std::atomic<bool> aborted{false};
  std::atomic<bool> joining{true};
  bool finalised = false;
  std::atomic<int> inside{0};  // threads in a group or a question
  std::mutex mutex;
  std::string last_error;
  std::vector<Operation> issued;  // in the group that is open, or not yet polled to its end
  int polls_left = 0;
  int64_t meetings = 0;    // used on the stream only
  int64_t operations = 0;  // likewise
};

namespace {

thread_local int t_depth = 0;
thread_local std::vector<ncclComm*> t_group;

size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclFloat64:
      return 8;
    default:
      return 1;
  }
}

void fail(ncclComm& comm, ncclResult_t result, const std::string& words) {
  const std::lock_guard lock(comm.mutex);
  if (comm.state.exchange(result) == ncclSuccess) comm.last_error = words;
}

void enter(ncclComm& comm) {
  if (comm.inside++ > 0) fail(comm, ncclInternalError, "two threads are in a communicator at once");
  std::this_thread::yield();  // others get their chance to be the second
}

// False if the communicator was aborted, or failed, meanwhile.
bool meet(ncclComm& comm) {
  const int64_t all = ++comm.meetings * comm.size;
  ++comm.shared->arrived;
  while (comm.shared->arrived < all) {
    if (comm.aborted) return false;
    std::this_thread::yield();
  }
  return true;
}

template <class T>
void reduce(std::byte* into, const std::byte* from, size_t count, ncclRedOp_t op) {
  for (size_t i = 0; i < count; ++i) {
    T a;
    T b;
    std::memcpy(&a, into + i * sizeof(T), sizeof(T));
    std::memcpy(&b, from + i * sizeof(T), sizeof(T));
    a = op == ncclSum ? a + b : op == ncclMax ? std::max(a, b) : std::min(a, b);
    std::memcpy(into + i * sizeof(T), &a, sizeof(T));
  }
}

// All ranks' data, reduced in rank order.
void reduce_all(const ncclComm& comm, const Offer& offer, std::byte* out) {
  std::memcpy(out, comm.shared->data[0].data(), offer.count * size_of(offer.type));
  for (size_t r = 1; r < static_cast<size_t>(comm.size); ++r) {
    const std::byte* in = comm.shared->data[r].data();
    if (offer.type == ncclFloat32) reduce<float>(out, in, offer.count, offer.op);
    if (offer.type == ncclFloat64) reduce<double>(out, in, offer.count, offer.op);
    if (offer.type == ncclInt32) reduce<int32_t>(out, in, offer.count, offer.op);
    if (offer.type == ncclInt64) reduce<int64_t>(out, in, offer.count, offer.op);
  }
}

// Copies in what this rank hands in; returns what is wrong with it.
std::string hand_in(ncclComm& comm, Operation& operation) {
  const auto me = static_cast<size_t>(comm.rank);
  std::byte* at = comm.shared->data[me].data();
  const std::byte* const end = at + kArea;
  Offer& offer = operation.offer;
  if (offer.kind != Kind::kExchange) {
    const size_t bytes = offer.count * size_of(offer.type);
    if (bytes > kArea) return "too much for the fake";
    if (bytes > 0) std::memcpy(at, pkmesh::behind(operation.in), bytes);
  } else {
    for (int peer = 0; peer < comm.size; ++peer) {
      int sends = 0;
      int receives = 0;
      for (const Message& message : operation.messages) {
        if (message.peer != peer) continue;
        ++(message.send ? sends : receives);
        if (!message.send) continue;
        offer.sent[static_cast<size_t>(peer)] = message.bytes;
        if (message.bytes > static_cast<size_t>(end - at)) return "too much for the fake";
        if (message.bytes > 0) std::memcpy(at, pkmesh::behind(message.memory), message.bytes);
        at += message.bytes;
      }
      if (sends != 1 || receives != 1) return "an exchange without one send and one receive for each pair";
    }
  }
  comm.shared->offers[me] = offer;
  return {};
}

std::string take(ncclComm& comm, const Operation& operation) {
  const auto me = static_cast<size_t>(comm.rank);
  const Offer& mine = operation.offer;
  Shared& shared = *comm.shared;
  for (size_t r = 0; r < static_cast<size_t>(comm.size); ++r) {
    const Offer& other = shared.offers[r];
    if (other.kind != mine.kind || other.count != mine.count || other.type != mine.type || other.op != mine.op ||
        other.root != mine.root)
      return "ranks issue different operations";
  }
  auto* const out = static_cast<std::byte*>(pkmesh::behind(operation.out));
  const size_t bytes = mine.count * size_of(mine.type);
  switch (mine.kind) {
    case Kind::kAllReduce:
      if (bytes > 0) reduce_all(comm, mine, out);
      return {};
    case Kind::kAllGather:
      for (size_t r = 0; r < static_cast<size_t>(comm.size) && bytes > 0; ++r)
        std::memcpy(out + r * bytes, shared.data[r].data(), bytes);
      return {};
    case Kind::kBroadcast:
      if (bytes > 0) std::memcpy(out, shared.data[static_cast<size_t>(mine.root)].data(), bytes);
      return {};
    case Kind::kExchange:
      break;
  }
  for (const Message& message : operation.messages) {
    if (message.send) continue;
    const auto from = static_cast<size_t>(message.peer);
    const auto& sent = shared.offers[from].sent;
    if (sent[me] != message.bytes) return "a receive of another size than its send";
    size_t begin = 0;
    for (size_t p = 0; p < me; ++p) begin += sent[p];
    if (message.bytes > 0) std::memcpy(pkmesh::behind(message.memory), shared.data[from].data() + begin, message.bytes);
  }
  return {};
}

bool is_lost(const ncclComm& comm) {
  const char* const lose = std::getenv("PKMESH_FAKE_NCCL_LOSE");
  int rank = 0;
  int64_t number = 0;
  return lose != nullptr && std::sscanf(lose, "%d %ld", &rank, &number) == 2 && rank == comm.rank &&
         number == comm.operations;
}

// On the stream, as a kernel would.
void run(ncclComm& comm, Operation& operation) {
  ++comm.operations;
  if (comm.aborted) return;
  std::string wrong = is_lost(comm) ? "the connection was lost" : hand_in(comm, operation);
  if (!wrong.empty()) {
    fail(comm, ncclRemoteError, wrong);
    while (!comm.aborted) std::this_thread::yield();  // as a kernel that waits for its peers
    return;
  }
  if (!meet(comm)) return;
  wrong = take(comm, operation);
  if (!wrong.empty()) fail(comm, ncclInvalidUsage, wrong);
  meet(comm);
}

// All messages of a group are one exchange.
void submit(ncclComm& comm) {
  for (Operation& operation : comm.issued)
    pkmesh::on_emulated_stream(operation.stream, [&comm, operation]() mutable { run(comm, operation); });
  comm.issued.clear();
}

ncclResult_t add(ncclComm_t comm, Operation operation) {
  if (t_depth == 0 || comm->polls_left > 0) return ncclInvalidUsage;  // one call at a time, in groups
  if (std::find(t_group.begin(), t_group.end(), comm) == t_group.end()) {
    t_group.push_back(comm);
    enter(*comm);
  }
  comm->issued.push_back(std::move(operation));
  return ncclSuccess;
}

ncclResult_t add_message(ncclComm_t comm, Message message, void* stream) {
  if (t_depth > 0 && !comm->issued.empty() && comm->issued.back().offer.kind == Kind::kExchange) {
    comm->issued.back().messages.push_back(message);
    return ncclSuccess;
  }
  Operation exchange{{Kind::kExchange, 0, ncclChar, ncclSum, 0, {}}, nullptr, nullptr, {message}, stream};
  return add(comm, std::move(exchange));
}

// Kept to the end of the process, destroyed or not: the watchdog's thread may ask about it at any time.
ncclComm& kept_communicator() {
  static std::mutex mutex;
  static auto& all = *new std::deque<ncclComm>;  // reachable, so no leak, and outlives the threads
  const std::lock_guard lock(mutex);
  return all.emplace_back();
}

}  // namespace

extern "C" {

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<int> number{0};
  std::memset(id, 0, sizeof(*id));
  std::snprintf(id->internal, sizeof(id->internal), "/pkmesh-fake-nccl-%d-%d", getpid(), ++number);
  const int file = shm_open(id->internal, O_CREAT | O_EXCL | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) return ncclSystemError;
  close(file);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (config->blocking != 0 || size > kMaxRanks) return ncclInvalidArgument;
  if (config->maxCTAs < 1 || 2 * config->maxCTAs > pkmesh::kMultiprocessors) return ncclInvalidArgument;
  const int file = shm_open(id.internal, O_RDWR, 0600);
  if (file < 0) return ncclSystemError;
  void* const memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return ncclSystemError;
  *comm = &kept_communicator();
  (*comm)->rank = rank;
  (*comm)->size = size;
  (*comm)->shared = static_cast<Shared*>(memory);
  if (++(*comm)->shared->joined == size) shm_unlink(id.internal);
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  enter(*comm);
  {
    const std::lock_guard lock(comm->mutex);
    if (comm->joining) {
      comm->joining = comm->shared->joined < comm->size;
      *error = comm->joining ? ncclInProgress : ncclSuccess;
    } else {
      if (comm->polls_left > 0 && --comm->polls_left == 0) submit(*comm);
      *error = comm->polls_left > 0 ? ncclInProgress : static_cast<ncclResult_t>(comm->state.load());
    }
  }
  --comm->inside;
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  const std::lock_guard lock(comm->mutex);
  if (comm->finalised || comm->polls_left > 0) return ncclInvalidUsage;
  comm->finalised = true;
  comm->polls_left = 3;
  return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (!comm->finalised || comm->polls_left > 0) {
    std::fputs("a communicator is destroyed before it was finalised\n", stderr);
    std::abort();  // nobody asks what came of it
  }
  comm->aborted = true;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->aborted = true;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError ? "remote process exited or there was a network error"
         : result == ncclSuccess   ? "no error"
                                   : "invalid usage";
}

const char* ncclGetLastError(ncclComm_t comm) {
  return comm == nullptr ? "" : comm->last_error.c_str();
}

ncclResult_t ncclGroupStart() {
  ++t_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (--t_depth > 0) return ncclSuccess;
  for (ncclComm* comm : t_group) {
    const std::lock_guard lock(comm->mutex);
    comm->polls_left = 3;
    --comm->inside;
  }
  t_group.clear();
  return ncclInProgress;
}

ncclResult_t ncclSend(const void* memory, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add_message(comm, {true, const_cast<void*>(memory), count * size_of(type), peer}, stream);
}

ncclResult_t ncclRecv(void* memory, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  return add_message(comm, {false, memory, count * size_of(type), peer}, stream);
}

ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  return add(comm, {{Kind::kAllReduce, count, type, op, 0, {}}, in, out, {}, stream});
}

ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return add(comm, {{Kind::kAllGather, count, type, ncclSum, 0, {}}, in, out, {}, stream});
}

ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  return add(comm, {{Kind::kBroadcast, count, type, ncclSum, root, {}}, in, out, {}, stream});
}

}  // extern "C"
