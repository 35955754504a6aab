// SPDX-License-Identifier: Apache-2.0
#include "io/corpus.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <stdexcept>
#include <thread>

#include "io/file.h"
#include "io/ordered_workers.h"
#include "tests/io/some_text.h"
#include "tests/io/temporary_folder.h"

namespace pkmesh {
namespace {

namespace fs = std::filesystem;

TEST(BlockReader, BlocksAreWholeLinesAndMakeTheText) {
  const TemporaryFolder folder;
  const std::string text = some_text(300) + "no newline at the end";
  replace_text(folder / "a", text);
  replace_text(folder / "empty", "");
  write_gzip(folder / "b", text);
  BlockReader reader({folder / "empty", folder / "a", folder / "empty", folder / "b"}, 500);
  Block block;
  std::string all;
  std::vector<size_t> begins;
  for (int64_t i = 0; reader.next(block); ++i) {
    EXPECT_EQ(block.index, i);
    EXPECT_LE(block.text.size(), 1000U);
    if (block.begins_file) begins.push_back(all.size());
    all += block.text;
    if (all.size() % text.size() != 0) {
      EXPECT_EQ(block.text.back(), '\n');
      EXPECT_GE(block.text.size(), 500U);
    }
  }
  EXPECT_EQ(all, text + text);
  EXPECT_EQ(begins, (std::vector<size_t>{0, text.size()}));
  EXPECT_EQ(reader.disk_bytes(), static_cast<int64_t>(text.size() + fs::file_size(folder / "b")));
}

TEST(BlockReader, ALineWithoutEndIsCutBetweenCharacters) {
  const TemporaryFolder folder;
  std::string text = "x";
  for (int i = 0; i < 200000; ++i) text += i < 1000 ? "\xF0\x9F\x98\x80" : "\xD0\xB0";
  replace_text(folder / "a", text);
  // Two of the larger blocks are what is read of a file at once, up to the middle of a character.
  for (const int64_t block_bytes : {50, 1 << 17}) {
    BlockReader reader({folder / "a"}, block_bytes);
    Block block;
    std::string all;
    while (reader.next(block)) {
      EXPECT_LE(std::ssize(block.text), 2 * block_bytes);
      EXPECT_NE(static_cast<uint8_t>(block.text[0]) & 0xC0U, 0x80U);
      all += block.text;
    }
    EXPECT_EQ(all, text);
  }
}

TEST(OrderedWorkers, KeepOrderAndRethrow) {
  OrderedWorkers<int, int> workers(4, [](int&& i) {
    if (i % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
    if (i == 50) throw std::runtime_error("fifty");
    return i * i;
  });
  for (int i = 0; i < 60; ++i) workers.put(i);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(workers.take(), i * i);
  EXPECT_THROW(workers.take(), std::runtime_error);
  EXPECT_EQ(workers.take(), 51 * 51);  // the rest is dropped with the workers
}

}  // namespace
}  // namespace pkmesh
