// SPDX-License-Identifier: Apache-2.0
#include "layers/parameters.h"

#include <algorithm>

#include "runtime/random.h"
#include "runtime/readback.h"

namespace pkmesh {
namespace {

void draw(const Parameters::Entry& entry, uint64_t seed, std::span<float> values) {
  const Random random(seed, entry.name);
  switch (entry.init.kind) {
    case Init::Kind::kConstant:
      std::ranges::fill(values, entry.init.scale);
      break;
    case Init::Kind::kNormal:
      random.normals(0, entry.count, entry.init.scale, values.data());
      break;
    case Init::Kind::kUniform:
      for (size_t i = 0; i < values.size(); ++i) values[i] = (2.0F * random.uniform(i) - 1.0F) * entry.init.scale;
      break;
  }
}

void fill(Stream& stream, std::span<float> all, const std::vector<Parameters::Entry>& entries, uint64_t seed) {
  for (const auto& entry : entries)
    write_from_host(stream, all.subspan(static_cast<size_t>(entry.offset), static_cast<size_t>(entry.count)),
                    [&](std::span<float> values) { draw(entry, seed, values); });
}

}  // namespace

int64_t Parameters::add_entry(std::vector<Entry>& entries, int64_t& total, const std::string& name,
                              std::vector<int64_t> shape, Init init, bool decays) {
  PKM_CHECK(std::ranges::none_of(entries, [&](const Entry& entry) { return entry.name == name; }),
            "parameter {} is registered twice", name);
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  const int64_t offset = total;
  entries.push_back({name, std::move(shape), offset, count, init, decays});
  total += count;
  return offset;
}

void Parameters::allocate(Device device, uint64_t seed) {
  PKM_CHECK(values_.count() == 0, "parameters are allocated once");
  values_ = Buffer<float>(device, count_);
  gradients_ = Buffer<float>(device, count_);
  states_ = Buffer<float>(device, state_count_);
  Stream stream(device);
  fill(stream, values_.span(), entries_, seed);
  fill(stream, states_.span(), state_entries_, seed);
}

}  // namespace pkmesh
