// SPDX-License-Identifier: Apache-2.0
#include "io/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "io/file.h"
#include "io/tensorboard.h"
#include "io/tensorboard_event.pb.h"
#include "runtime/check.h"
#include "tests/io/temporary_folder.h"

namespace pkmesh {
namespace {

using nlohmann::json;

TEST(Metrics, EachStepOnceAfterResuming) {
  const TemporaryFolder folder;
  const std::string path = folder / "metrics.jsonl";
  {
    MetricsFile metrics(path, 0);
    for (int step = 1; step <= 5; ++step) metrics.append({{"step", step}, {"loss", 10 - step}});
    EXPECT_THROW(metrics.append({{"step", 5}}), InternalError);
    EXPECT_EQ(read_metrics(path).size(), 5);  // flushed line by line
  }
  File::open_for_appending(path).append("{\"step\":6,\"lo");  // torn by a crash
  EXPECT_EQ(read_metrics(path).size(), 5);
  {
    MetricsFile metrics(path, 3);
    metrics.append({{"step", 4}, {"loss", 0.5}, {"lr", std::nan("")}});
  }
  EXPECT_EQ(read_text(path),
            "{\"loss\":9,\"step\":1}\n{\"loss\":8,\"step\":2}\n{\"loss\":7,\"step\":3}\n"
            "{\"loss\":0.5,\"lr\":null,\"step\":4}\n");
  MetricsFile fresh(path, 0);
  EXPECT_EQ(read_metrics(path).size(), 4) << "nothing is lost before there is something new";
  fresh.append({{"step", 1}});
  EXPECT_EQ(read_text(path), "{\"step\":1}\n");
}

TEST(Metrics, GarbageIsNotCutOff) {
  const TemporaryFolder folder;
  const std::string path = folder / "metrics.jsonl";
  const std::string text = "{\"step\":1}\nnot json\n{\"step\":3}\n";
  replace_text(path, text);
  EXPECT_THROW(MetricsFile(path, 3), UserError);
  EXPECT_THROW(read_metrics(path), UserError);
  EXPECT_EQ(read_text(path), text);
  EXPECT_THROW(MetricsFile(folder / "absent/metrics.jsonl", 0), UserError);
}

// The messages of a TFRecord file, its checksums checked on the way.
std::vector<tensorboard::Event> read_events(const std::string& path) {
  const std::string text = read_text(path);
  std::vector<tensorboard::Event> events;
  for (size_t at = 0; at < text.size();) {
    uint64_t length = 0;
    uint32_t length_crc = 0;
    uint32_t crc = 0;
    std::memcpy(&length, text.data() + at, 8);
    std::memcpy(&length_crc, text.data() + at + 8, 4);
    EXPECT_EQ(length_crc, masked_crc32c(std::string_view(text).substr(at, 8)));
    const std::string_view message = std::string_view(text).substr(at + 12, length);
    std::memcpy(&crc, text.data() + at + 12 + length, 4);
    EXPECT_EQ(crc, masked_crc32c(message));
    EXPECT_TRUE(events.emplace_back().ParseFromArray(message.data(), static_cast<int>(message.size())));
    at += 16 + length;
  }
  return events;
}

TEST(TensorBoard, ChecksumIsCastagnolis) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283U);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAU);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43U);
  EXPECT_EQ(masked_crc32c("123456789"), ((0xE3069283U >> 15) | (0xE3069283U << 17)) + 0xA282EAD8U);
}

TEST(TensorBoard, EveryNumberIsAScalar) {
  const TemporaryFolder folder;
  TensorBoardWriter writer(folder.path(), 0);
  writer.append({{"step", 7}, {"loss", 2.5}, {"note", "text"}, {"memory", {{"L6", {{"used", 0.5}, {"kl", nullptr}}}}}});
  const auto events = read_events(folder / list_folder(folder.path()).back());
  ASSERT_EQ(events.size(), 3);
  EXPECT_EQ(events[0].file_version(), "brain.Event:2");
  EXPECT_GT(events[0].wall_time(), 1.6e9);
  EXPECT_EQ(events[1].session_log().status(), tensorboard::SessionLog::START);
  EXPECT_EQ(events[1].step(), 1) << "a killed run that saved nothing may have left older files";
  EXPECT_EQ(events[2].step(), 7);
  ASSERT_EQ(events[2].summary().value_size(), 2);
  EXPECT_EQ(events[2].summary().value(0).tag(), "loss");
  EXPECT_EQ(events[2].summary().value(0).simple_value(), 2.5F);
  EXPECT_EQ(events[2].summary().value(1).tag(), "memory/L6/used");

  TensorBoardWriter resumed(folder.path(), 4);
  const auto files = list_folder(folder.path());
  ASSERT_EQ(files.size(), 2) << "one of its own, read after the first";
  EXPECT_EQ(read_events(folder / files.back()).size(), 1) << "nothing is forgotten before there is something new";
  resumed.append({{"step", 5}, {"loss", 1}});
  const auto again = read_events(folder / files.back());
  ASSERT_EQ(again.size(), 3);
  EXPECT_EQ(again[1].session_log().status(), tensorboard::SessionLog::START);
  EXPECT_EQ(again[1].step(), 5);
}

}  // namespace
}  // namespace pkmesh
