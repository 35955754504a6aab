// SPDX-License-Identifier: Apache-2.0
// A counting sort in two passes over chunks of tokens: count per (chunk, owner), then place. The sort is stable, so its
// result does not depend on how the tokens were cut into chunks.
#include <algorithm>
#include <vector>

#include "comm/route.h"
#include "runtime/parallel.h"

namespace pkmesh::PKM_CPU {
namespace {

constexpr int64_t kMinimumChunk = 64;  // tokens

// Per chunk and owner: how many it has in the first pass, where its next one goes in the second.
struct ChunkState {
  int64_t selections = 0;
  int64_t pairs = 0;
  int32_t last_token = -1;  // that had a selection here
};

// Counts of tokens [begin, end); addresses and the number of each token's pairs on the way.
void count_chunk(const Leg& leg, const Asked& asked, int64_t begin, int64_t end, ChunkState* state,
                 const OwnerOrder& out) {
  for (int64_t token = begin; token < end; ++token) {
    int32_t pairs = 0;
    for (int64_t i = asked.offsets[token]; i < asked.offsets[token + 1]; ++i) {
      const RowAddress address = leg.locate(asked.selections[i].row);
      out.addresses[i] = address;
      ChunkState& owner = state[address.owner];
      ++owner.selections;
      pairs += owner.last_token != token;
      owner.pairs += owner.last_token != token;
      owner.last_token = static_cast<int32_t>(token);
    }
    out.token_offsets[token + 1] = pairs;
  }
}

void place_chunk(const Asked& asked, int64_t begin, int64_t end, ChunkState* state, const OwnerOrder& out) {
  for (int64_t token = begin; token < end; ++token) {
    int32_t* const token_pairs = out.token_pairs.data() + out.token_offsets[token];
    int32_t* next = token_pairs;
    for (int64_t i = asked.offsets[token]; i < asked.offsets[token + 1]; ++i) {
      const RowAddress address = out.addresses[i];
      ChunkState& owner = state[address.owner];
      if (owner.last_token != token) {
        owner.last_token = static_cast<int32_t>(token);
        *next++ = static_cast<int32_t>(owner.pairs);
        out.pair_token[owner.pairs] = static_cast<int32_t>(token);
        out.pair_lengths[owner.pairs] = 0;
        ++owner.pairs;
      }
      ++out.pair_lengths[owner.pairs - 1];
      out.selections[owner.selections] = {address.local, asked.selections[i].weight};
      out.order[owner.selections] = static_cast<int32_t>(i);
      ++owner.selections;
    }
    std::sort(token_pairs, next);  // by owner: they come in the order of the owners' first selections
  }
}

}  // namespace

void sort_by_owner(Stream&, const Leg& leg, const Asked& asked, const OwnerOrder& out) {
  const int64_t tokens = asked.tokens();
  const int64_t peers = leg.peers();
  const int64_t chunks = std::clamp<int64_t>(tokens / kMinimumChunk, 1, threads());
  thread_local std::vector<ChunkState> kept;  // one call's scratch, kept for the next
  kept.assign(static_cast<size_t>(chunks * peers), {});
  std::vector<ChunkState>& states = kept;
  const auto for_chunks = [&](const auto& body) {
    parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk)
        body(tokens * chunk / chunks, tokens * (chunk + 1) / chunks, states.data() + chunk * peers);
    });
  };

  for_chunks([&](int64_t begin, int64_t end, ChunkState* state) { count_chunk(leg, asked, begin, end, state, out); });
  out.token_offsets[0] = 0;
  for (int64_t token = 0; token < tokens; ++token) out.token_offsets[token + 1] += out.token_offsets[token];
  int64_t selections = 0;
  int64_t pairs = 0;
  for (int64_t owner = 0; owner < peers; ++owner) {
    out.selection_counts[owner] = -selections;
    out.pair_counts[owner] = -pairs;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {  // counts become places
      ChunkState& state = states[static_cast<size_t>(chunk * peers + owner)];
      selections += std::exchange(state.selections, selections);
      pairs += std::exchange(state.pairs, pairs);
      state.last_token = -1;
    }
    out.selection_counts[owner] += selections;
    out.pair_counts[owner] += pairs;
  }
  for_chunks([&](int64_t begin, int64_t end, ChunkState* state) { place_chunk(asked, begin, end, state, out); });
}

void select_by_token(Stream&, Matrix<const int32_t> rows, Matrix<const float> weights, Vector<Selection> selections,
                     Vector<int32_t> offsets) {
  parallel_for(0, rows.count(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) selections[i] = {rows.data()[i], weights.data()[i]};
  });
  for (int64_t token = 0; token <= rows.size(0); ++token) offsets[token] = static_cast<int32_t>(token * rows.size(1));
}

void add_lengths(Stream&, Vector<const uint16_t> lengths, int64_t total, Vector<int32_t> offsets) {
  offsets[0] = 0;
  for (int64_t pair = 0; pair < lengths.count(); ++pair) offsets[pair + 1] = offsets[pair] + lengths[pair];
  PKM_CHECK(offsets[lengths.count()] == total, "{} selections arrived for pairs of {}", total,
            offsets[lengths.count()]);
}

}  // namespace pkmesh::PKM_CPU
