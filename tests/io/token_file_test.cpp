// SPDX-License-Identifier: Apache-2.0
#include "io/token_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "io/file.h"
#include "runtime/check.h"
#include "runtime/random.h"
#include "tests/io/temporary_folder.h"
#include "tests/io/written_tokens.h"

namespace pkmesh {
namespace {

std::vector<int32_t> random_ids(int64_t count, int32_t vocabulary_size) {
  const Random random(1, "token file test");
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(random.bits(i) % uint32_t(vocabulary_size));
  return ids;
}

void write(const std::string& folder, const std::vector<int32_t>& ids, const Tokenizer& tokenizer, int64_t shard_tokens,
           const std::string& split = "train") {
  TokenWriter writer(folder, split, tokenizer, shard_tokens);
  const std::span<const int32_t> all(ids);
  for (size_t begin = 0; begin < ids.size(); begin += 37) {
    const auto piece = all.subspan(begin, std::min<size_t>(37, ids.size() - begin));
    writer.append(piece, {.bytes = 3 * static_cast<int64_t>(piece.size()), .words = 2});
  }
  writer.finish();
}

std::vector<int32_t> read_all(const Tokens& tokens) {
  std::vector<int32_t> ids(static_cast<size_t>(tokens.count()));
  tokens.read(0, ids);
  return ids;
}

std::string error_of(const std::string& folder, uint64_t hash = 0) {
  try {
    Tokens::open(folder, "train", hash).verify();
  } catch (const UserError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "no error";
}

void flip_bit(const std::string& path, std::streamoff at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(at);
  const int byte = file.get();
  file.seekp(at);
  file.put(static_cast<char>(byte ^ 4));
}

TEST(TextSize, CountsBytesAndWords) {
  EXPECT_EQ(text_size("").words, 0);
  EXPECT_EQ(text_size(" \n\t").words, 0);
  EXPECT_EQ(text_size("one").words, 1);
  EXPECT_EQ(text_size(" one\ttwo\r\n three ").words, 3);
  EXPECT_EQ(text_size(" one\ttwo").bytes, 8);
}

TEST(TokenFile, WhatIsWrittenIsReadWhateverTheShardsAndTheWidth) {
  for (const int32_t vocabulary_size : {257, 65536, 65537, 1 << 20}) {
    const SizedTokenizer tokenizer(vocabulary_size, 7);
    for (const int64_t count : {1, 3, 99, 100, 101, 300}) {
      auto ids = random_ids(count, vocabulary_size);
      ids[0] = vocabulary_size - 1;
      for (const int64_t shard_tokens : {1, 100, 1000}) {
        if (count / shard_tokens > 10) continue;
        const TemporaryFolder folder;
        write(folder.path(), ids, tokenizer, shard_tokens);
        const Tokens tokens = Tokens::open(folder.path(), "train", 7);
        EXPECT_EQ(std::ssize(list_folder(folder.path())), (count + shard_tokens - 1) / shard_tokens);
        EXPECT_EQ(read_all(tokens), ids);
        EXPECT_EQ(tokens.text().bytes, 3 * count);
        EXPECT_EQ(tokens.text().words, 2 * ((count + 36) / 37));
        EXPECT_EQ(tokens.vocabulary_size(), vocabulary_size);
        EXPECT_NO_THROW(tokens.verify());
      }
    }
  }
}

TEST(TokenFile, ReadsAnyRangeAcrossShards) {
  const TemporaryFolder folder;
  const auto ids = random_ids(50, 300);
  write(folder.path(), ids, SizedTokenizer(300, 7), 7);
  const Tokens tokens = Tokens::open(folder.path(), "train");
  for (size_t begin = 0; begin <= ids.size(); ++begin) {
    for (size_t end = begin; end <= ids.size(); ++end) {
      std::vector<int32_t> range(end - begin);
      tokens.read(static_cast<int64_t>(begin), range);
      EXPECT_TRUE(std::equal(range.begin(), range.end(), ids.begin() + static_cast<int64_t>(begin)));
    }
  }
  std::vector<int32_t> one(1);
  EXPECT_THROW(tokens.read(50, one), InternalError);
  EXPECT_THROW(tokens.read(-1, one), InternalError);
}

TEST(TokenFile, AnEmptySplitIsThereAndEmpty) {
  const TemporaryFolder folder;
  write(folder.path(), {}, SizedTokenizer(300, 7), 7, "valid");
  EXPECT_EQ(Tokens::open(folder.path(), "valid").count(), 0);
}

TEST(TokenFile, NothingIsLeftOfWhatWasNotFinished) {
  const TemporaryFolder folder;
  {
    TokenWriter writer(folder.path(), "train", SizedTokenizer(300, 7), 100);
    writer.append(random_ids(50, 300), {});
    EXPECT_FALSE(std::filesystem::is_empty(folder.path()));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  EXPECT_THROW(TokenWriter(folder / "absent", "train", SizedTokenizer(300, 7), 100).append(random_ids(5, 300), {}),
               UserError);
}

TEST(TokenFile, AFullDiskIsTheUsersError) {
  if (!std::filesystem::exists("/dev/full")) GTEST_FAIL() << "/dev/full is needed";
  const TemporaryFolder folder;
  std::filesystem::create_symlink("/dev/full", folder / "train-00000.tok.tmp");
  TokenWriter writer(folder.path(), "train", SizedTokenizer(300, 7), 1 << 20);
  EXPECT_THROW(
      {
        writer.append(random_ids(100000, 300), {});
        writer.finish();
      },
      UserError);
}

TEST(TokenFile, DamageIsNamed) {
  const auto ids = random_ids(200, 300);
  const SizedTokenizer tokenizer(300, 7);
  const auto damaged = [&](const auto& damage, uint64_t hash = 0) {
    const TemporaryFolder folder;
    write(folder.path(), ids, tokenizer, 100);
    EXPECT_EQ(error_of(folder.path()), "no error");
    damage(folder);
    return error_of(folder.path(), hash);
  };
  const auto expect = [](const std::string& error, const char* words) {
    EXPECT_NE(error.find(words), std::string::npos) << error;
  };
  for (const int64_t size : {327, 326, 129, 128})
    expect(damaged([&](auto& folder) { std::filesystem::resize_file(folder / "train-00001.tok", size_t(size)); }),
           "truncated");
  expect(damaged([](auto& folder) { std::filesystem::resize_file(folder / "train-00001.tok", 400); }),
         "longer than it was written");
  for (const int64_t size : {127, 1, 0})
    expect(damaged([&](auto& folder) { std::filesystem::resize_file(folder / "train-00001.tok", size_t(size)); }),
           "no token file");
  for (const std::streamoff at : {128, 200, 327, 328, 335})  // tokens, then their checksum
    expect(damaged([&](auto& folder) { flip_bit(folder / "train-00000.tok", at); }), "checksum");
  expect(damaged([](auto&) {}, 8), "tokenizer");
  expect(damaged([](auto& folder) { std::filesystem::remove(folder / "train-00001.tok"); }), "missing");
  expect(damaged([](auto& folder) { std::filesystem::remove(folder / "train-00000.tok"); }), "train-00000.tok");
  expect(damaged([](auto& folder) {
           std::filesystem::copy_file(folder / "train-00000.tok", folder / "train-00001.tok",
                                      std::filesystem::copy_options::overwrite_existing);
         }),
         "written as shard 0");
  const TemporaryFolder folder;
  expect(error_of(folder.path()), "no training tokens");
  expect(error_of(folder / "absent"), "No such file");
  EXPECT_FALSE(Tokens::exist(folder.path(), "train"));
}

// Opening reads no tokens, and a block is held against its checksum when it is read, by whoever reads it.
TEST(TokenFile, DamageIsFoundWhereItIsRead) {
  constexpr int64_t kBlock = 32768;  // tokens of 2 bytes
  const TemporaryFolder folder;
  const auto ids = random_ids(5 * kBlock + 11, 300);
  write(folder.path(), ids, SizedTokenizer(300, 7), 3 * kBlock + 5);  // 4 blocks, 2 blocks
  flip_bit(folder / "train-00000.tok", 128 + 2 * (2 * kBlock) + 77);
  const Tokens tokens = Tokens::open(folder.path(), "train");
  EXPECT_EQ(tokens.bytes(), 2 * static_cast<int64_t>(ids.size()));
  const auto read = [&](int64_t begin, int64_t end) {
    std::vector<int32_t> out(static_cast<size_t>(end - begin));
    tokens.read(begin, out);
    EXPECT_TRUE(std::equal(out.begin(), out.end(), ids.begin() + begin));
  };
  for (int again = 0; again < 2; ++again) {
    read(0, 2 * kBlock);
    read(3 * kBlock, 5 * kBlock + 11);
    for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
             {2 * kBlock, 2 * kBlock + 1}, {3 * kBlock - 1, 3 * kBlock}, {2 * kBlock - 1, 2 * kBlock + 1}})
      EXPECT_THROW(read(begin, end), UserError);
  }
  int damaged_parts = 0;
  for (int part = 0; part < 3; ++part) {
    try {
      tokens.verify(part, 3);
    } catch (const UserError&) {
      ++damaged_parts;
    }
  }
  EXPECT_EQ(damaged_parts, 1);
}

TEST(TokenFile, NoBitOfTheHeaderFlipsUnnoticed) {
  const TemporaryFolder folder;
  write(folder.path(), random_ids(200, 300), SizedTokenizer(300, 7), 1000);
  for (std::streamoff at = 0; at < 128; ++at) {
    flip_bit(folder / "train-00000.tok", at);
    EXPECT_NE(error_of(folder.path()), "no error") << at;
    flip_bit(folder / "train-00000.tok", at);
  }
  EXPECT_EQ(error_of(folder.path()), "no error");
}

TEST(TokenFile, ShardsOfTwoTokenizersDoNotMix) {
  const TemporaryFolder folder;
  write(folder.path(), random_ids(200, 300), SizedTokenizer(300, 7), 100);
  const TemporaryFolder other;
  write(other.path(), random_ids(200, 300), SizedTokenizer(300, 8), 100);
  std::filesystem::copy_file(other / "train-00001.tok", folder / "train-00001.tok",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_NE(error_of(folder.path()).find("tokenizer"), std::string::npos);
}

}  // namespace
}  // namespace pkmesh
