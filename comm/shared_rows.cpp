// SPDX-License-Identifier: Apache-2.0
#include "comm/shared_rows.h"

#include <algorithm>
#include <numeric>

#include "runtime/check.h"

namespace pkmesh {
namespace {

int64_t elements(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

}  // namespace

SharedRows::SharedRows(Communicator& world, int64_t width, int64_t most_ids, std::vector<std::vector<Share>> shares)
    : world_(world),
      width_(width),
      most_ids_(most_ids),
      shares_(std::move(shares)),
      asked_(shares_.size()),
      all_(shares_.size() * static_cast<size_t>(most_ids)),
      counts_of_owners_(shares_.size()),
      counts_of_askers_(shares_.size()) {
  PKM_CHECK(std::ssize(shares_) == world.size(), "shares of {} ranks of {}", shares_.size(), world.size());
}

// In many ranks a share is short, and few of an asker's rows meet it.
template <class Body>
void SharedRows::for_parts(int owner, int asker, const Body& body) const {
  const std::vector<int32_t>& rows = asked_[static_cast<size_t>(asker)];
  auto row = rows.begin();
  for (const Share& share : shares_[static_cast<size_t>(owner)]) {
    row = std::lower_bound(row, rows.end(), share.begin / width_);
    if (row == rows.end()) return;
    for (auto next = row; next != rows.end() && *next * width_ < share.end; ++next) {
      const Share part = share.part_of({*next * width_, (*next + 1) * width_});
      body(part, (next - rows.begin()) * width_ + part.begin - *next * width_);
    }
  }
}

void SharedRows::ask(std::span<const int32_t> ids, std::span<int32_t> places) {
  PKM_CHECK(std::ssize(ids) <= most_ids_ && places.size() == ids.size(), "{} ids, {} places, at most {}", ids.size(),
            places.size(), most_ids_);
  std::vector<int32_t>& mine = asked_[static_cast<size_t>(world_.rank())];
  mine.assign(ids.begin(), ids.end());
  std::ranges::sort(mine);
  mine.erase(std::unique(mine.begin(), mine.end()), mine.end());
  for (size_t i = 0; i < ids.size(); ++i)
    places[i] = static_cast<int32_t>(std::ranges::lower_bound(mine, ids[i]) - mine.begin());

  mine.resize(static_cast<size_t>(most_ids_), -1);
  world_.all_gather<int32_t>(mine, std::span(all_), Purpose::kInputRows);
  for (int rank = 0; rank < world_.size(); ++rank) {
    const auto begin = all_.begin() + rank * most_ids_;
    asked_[static_cast<size_t>(rank)].assign(begin, std::find(begin, begin + most_ids_, -1));
  }
  for (int rank = 0; rank < world_.size(); ++rank) {
    int64_t& of_owner = counts_of_owners_[static_cast<size_t>(rank)] = 0;
    int64_t& of_asker = counts_of_askers_[static_cast<size_t>(rank)] = 0;
    for_parts(rank, world_.rank(), [&](Share part, int64_t) { of_owner += part.count(); });
    for_parts(world_.rank(), rank, [&](Share part, int64_t) { of_asker += part.count(); });
  }
  of_owners_.resize(std::max(of_owners_.size(), static_cast<size_t>(elements(counts_of_owners_))));
  of_askers_.resize(std::max(of_askers_.size(), static_cast<size_t>(elements(counts_of_askers_))));
}

void SharedRows::fetch(std::span<const float> flat, std::span<float> rows) {
  PKM_CHECK(std::ssize(rows) == count() * width_, "{} elements for {} rows", rows.size(), count());
  auto* to_askers = of_askers_.data();
  for (int rank = 0; rank < world_.size(); ++rank)
    for_parts(world_.rank(), rank,
              [&](Share part, int64_t) { to_askers = std::ranges::copy(part.of(flat), to_askers).out; });
  const auto going = std::span(of_askers_).first(static_cast<size_t>(elements(counts_of_askers_)));
  const auto coming = std::span(of_owners_).first(static_cast<size_t>(elements(counts_of_owners_)));
  world_.all_to_all_v<float>(going, counts_of_askers_, coming, counts_of_owners_, Purpose::kInputRows);
  const float* from_owners = of_owners_.data();
  for (int rank = 0; rank < world_.size(); ++rank)
    for_parts(rank, world_.rank(), [&](Share part, int64_t place) {
      std::copy_n(from_owners, part.count(), rows.data() + place);
      from_owners += part.count();
    });
}

Pending SharedRows::add(std::span<const float> rows, std::span<float> flat) {
  PKM_CHECK(std::ssize(rows) == count() * width_, "{} elements of {} rows", rows.size(), count());
  auto* to_owners = of_owners_.data();
  for (int rank = 0; rank < world_.size(); ++rank)
    for_parts(rank, world_.rank(), [&](Share part, int64_t place) {
      to_owners = std::copy_n(rows.data() + place, part.count(), to_owners);
    });
  const auto going = std::span(of_owners_).first(static_cast<size_t>(elements(counts_of_owners_)));
  const auto coming = std::span(of_askers_).first(static_cast<size_t>(elements(counts_of_askers_)));
  auto arrives = std::make_shared<Pending>(
      world_.all_to_all_v_async<float>(going, counts_of_owners_, coming, counts_of_askers_, Purpose::kInputRows));
  return Pending([this, arrives, flat] {
    arrives->wait();
    const float* from_askers = of_askers_.data();
    for (int rank = 0; rank < world_.size(); ++rank)
      for_parts(world_.rank(), rank, [&](Share part, int64_t) {
        for (float& element : part.of(flat)) element += *from_askers++;
      });
  });
}

}  // namespace pkmesh
