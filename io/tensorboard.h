// SPDX-License-Identifier: Apache-2.0
// Scalars for TensorBoard: a file of events, each framed as a TFRecord: length (8 bytes, little-endian), its masked
// CRC-32C, the message (io/tensorboard_event.proto), its masked CRC-32C (tensorflow/core/lib/io/record_writer.h).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "io/file.h"

namespace pkmesh {

class TensorBoardWriter {
 public:
  // Starts a new event file in the folder. From the first append() on, TensorBoard forgets what older files say of
  // steps after `resume_step`.
  TensorBoardWriter(const std::string& folder, int64_t resume_step);
  // One event with every number in `values`, an object with "step"; nested names become "memory/layer6/used".
  void append(const nlohmann::json& values);

 private:
  void forget_later_steps();
  void write(std::string_view message);

  File file_;
  std::optional<int64_t> resume_step_;  // until TensorBoard was told
};

uint32_t crc32c(std::string_view bytes);         // Castagnoli's polynomial; of "123456789" it is 0xE3069283
uint32_t masked_crc32c(std::string_view bytes);  // as it stands in a TFRecord

}  // namespace pkmesh
