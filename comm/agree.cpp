// SPDX-License-Identifier: Apache-2.0
#include "comm/agree.h"

#include <xxhash.h>

#include <array>
#include <string>

namespace pkmesh {
namespace {

void throw_words_of(Communicator& world, int root, std::string words) {
  std::array<int64_t, 1> length = {static_cast<int64_t>(words.size())};
  world.broadcast(std::span<int64_t>(length), root, Purpose::kControl);
  words.resize(static_cast<size_t>(length[0]));
  world.broadcast(std::span<char>(words), root, Purpose::kControl);
  throw AgreedError(words);
}

}  // namespace

void agree(Communicator& world, const std::function<void()>& work) {
  std::string words;
  std::array<int64_t, 1> first_to_fail = {world.size()};
  try {
    work();
  } catch (const UserError& error) {
    words = error.what();
    first_to_fail[0] = world.rank();
  }
  world.all_reduce(std::span<int64_t>(first_to_fail), Reduction::kMin, Purpose::kControl);
  if (first_to_fail[0] < world.size()) throw_words_of(world, static_cast<int>(first_to_fail[0]), words);
}

void agree_on(Communicator& world, std::string_view what, std::string_view text) {
  const auto hash = static_cast<int64_t>(XXH3_64bits(text.data(), text.size()));
  std::array<int64_t, 1> of_rank_0 = {hash};
  world.broadcast(std::span<int64_t>(of_rank_0), 0, Purpose::kControl);
  agree(world, [&] {
    if (hash != of_rank_0[0])
      user_error("rank {} on {} has another {} than rank 0 on {}; give all ranks the same files and options",
                 world.rank(),
                 world.hosts().names[static_cast<size_t>(world.hosts().of_rank[static_cast<size_t>(world.rank())])],
                 what, world.hosts().names[static_cast<size_t>(world.hosts().of_rank[0])]);
  });
}

}  // namespace pkmesh
