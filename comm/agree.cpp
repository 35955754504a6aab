// SPDX-License-Identifier: Apache-2.0
#include "comm/agree.h"

#include <algorithm>
#include <array>
#include <string>

namespace pkmesh {
namespace {

// The root's text, on every rank.
std::string broadcast_text(Communicator& world, int root, std::string text) {
  std::array<int64_t, 1> length = {static_cast<int64_t>(text.size())};
  world.broadcast(std::span<int64_t>(length), root, Purpose::kControl);
  text.resize(static_cast<size_t>(length[0]));
  world.broadcast(std::span<char>(text), root, Purpose::kControl);
  return text;
}

// The line in which position `at` of a text lies, without its indentation.
std::string_view line_at(std::string_view text, size_t at) {
  const size_t newline = at == 0 ? std::string_view::npos : text.rfind('\n', at - 1);
  const size_t begin = text.find_first_not_of(' ', newline == std::string_view::npos ? 0 : newline + 1);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find('\n', std::max(begin, at)) - begin);
}

std::string host_of(const Communicator& world, int rank) {
  return world.hosts().names[static_cast<size_t>(world.hosts().of_rank[static_cast<size_t>(rank)])];
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
  if (first_to_fail[0] < world.size())
    throw AgreedError(broadcast_text(world, static_cast<int>(first_to_fail[0]), std::move(words)));
}

void agree_on(Communicator& world, std::string_view what, std::string_view text) {
  const std::string of_rank_0 = broadcast_text(world, 0, std::string(text));
  agree(world, [&] {
    if (text == of_rank_0) return;
    const auto differ = std::ranges::mismatch(text, of_rank_0);
    const auto at = static_cast<size_t>(differ.in1 - text.begin());
    user_error("rank {} on {} has another {} than rank 0 on {}: \"{}\" instead of \"{}\"; give all ranks the same",
               world.rank(), host_of(world, world.rank()), what, host_of(world, 0), line_at(text, at),
               line_at(of_rank_0, at));
  });
}

}  // namespace pkmesh
