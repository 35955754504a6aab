// SPDX-License-Identifier: Apache-2.0
#include "comm/agree.h"

#include <algorithm>
#include <array>
#include <string>

#include "runtime/text.h"

namespace pkmesh {
namespace {

std::string quoted(std::string_view line) {
  line.remove_prefix(std::min(line.size(), line.find_first_not_of(' ')));
  return line.empty() ? "nothing" : fmt::format("\"{}\"", line);
}

// The first line that differs: "\"steps: 4\" instead of \"steps: 3\"".
std::string difference(std::string_view mine, std::string_view theirs) {
  while (true) {
    const std::string_view my_line = take_line(mine);
    const std::string_view their_line = take_line(theirs);
    if (my_line != their_line || (mine.empty() && theirs.empty()))
      return fmt::format("{} instead of {}", quoted(my_line), quoted(their_line));
  }
}

}  // namespace

std::string broadcast_text(Communicator& world, int root, std::string text) {
  std::array<int64_t, 1> length = {static_cast<int64_t>(text.size())};
  world.broadcast(std::span<int64_t>(length), root, Purpose::kControl);
  text.resize(static_cast<size_t>(length[0]));
  world.broadcast(std::span<char>(text), root, Purpose::kControl);
  return text;
}

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
  if (first_to_fail[0] < world.size())
    throw AgreedError(broadcast_text(world, static_cast<int>(first_to_fail[0]), std::move(words)));
}

void agree_on(Communicator& world, std::string_view what, std::string_view text) {
  const std::string of_rank_0 = broadcast_text(world, 0, std::string(text));
  agree(world, [&] {
    if (text == of_rank_0) return;
    user_error("rank {} on {} has another {} than rank 0 on {}: {}; give all ranks the same", world.rank(),
               world.hosts().name_of(world.rank()), what, world.hosts().name_of(0), difference(text, of_rank_0));
  });
}

}  // namespace pkmesh
