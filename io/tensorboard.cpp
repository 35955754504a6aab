// SPDX-License-Identifier: Apache-2.0
#include "io/tensorboard.h"

#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "comm/communicator.h"
#include "io/tensorboard_event.pb.h"
#include "runtime/check.h"

namespace pkmesh {
namespace {

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? 0x82F63B78U : 0U);
    table[i] = crc;
  }
  return table;
}

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string new_file(const std::string& folder) {
  // The microseconds keep two files of one process apart; TensorBoard reads files in the order of their names.
  const auto now = static_cast<int64_t>(wall_time() * 1e6);
  return fmt::format("{}/events.out.tfevents.{:010}.{:06}.{}.{}", folder, now / 1000000, now % 1000000, this_host(),
                     ::getpid());
}

void add_numbers(const nlohmann::json& values, const std::string& prefix, tensorboard::Summary* summary) {
  for (const auto& [key, value] : values.items()) {
    if (value.is_object()) {
      add_numbers(value, prefix + key + "/", summary);
    } else if (value.is_number() && prefix + key != "step") {
      auto* scalar = summary->add_value();
      scalar->set_tag(prefix + key);
      scalar->set_simple_value(value.get<float>());
    }
  }
}

template <class T>
void append_number(std::string& record, T number) {
  std::array<char, sizeof(T)> bytes{};
  std::memcpy(bytes.data(), &number, sizeof(T));
  record.append(bytes.data(), bytes.size());
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static constexpr auto kTable = make_crc_table();
  uint32_t crc = 0xFFFFFFFFU;
  for (const char c : bytes) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<uint8_t>(c)) & 0xFFU];
  return ~crc;
}

uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8U;
}

TensorBoardWriter::TensorBoardWriter(const std::string& folder, int64_t resume_step)
    : file_(File::create(new_file(folder))), resume_step_(resume_step) {
  tensorboard::Event event;
  event.set_wall_time(wall_time());
  event.set_file_version("brain.Event:2");
  write(event.SerializeAsString());
}

void TensorBoardWriter::forget_later_steps() {
  tensorboard::Event event;
  event.set_wall_time(wall_time());
  event.set_step(*std::exchange(resume_step_, std::nullopt) + 1);
  event.mutable_session_log()->set_status(tensorboard::SessionLog::START);
  write(event.SerializeAsString());
}

void TensorBoardWriter::append(const nlohmann::json& values) {
  if (resume_step_) forget_later_steps();
  tensorboard::Event event;
  event.set_wall_time(wall_time());
  event.set_step(values.at("step").get<int64_t>());
  add_numbers(values, "", event.mutable_summary());
  write(event.SerializeAsString());
}

void TensorBoardWriter::write(std::string_view message) {
  std::string record;
  append_number(record, static_cast<uint64_t>(message.size()));
  append_number(record, masked_crc32c(record));
  record += message;
  append_number(record, masked_crc32c(message));
  file_.append(record);
}

}  // namespace pkmesh
